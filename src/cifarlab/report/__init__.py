"""From many runs to an answer: records are read, grouped, compared and shown. Never imports torch.

reading -> rows -> statistics, comparison, factors -> summary -> tables, pictures, page
"""
