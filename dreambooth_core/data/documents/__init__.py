"""Documents about a subject (PDF, photo of a label, chart): pages, text, subject cards, tables.

pages.py         pages of PDFs and images as pictures with text, under limits
pdf_worker.py    the child process that renders a PDF
text_search.py   text recognition that does not use the model, and the search for words and numbers in it
cards.py         documents -> `SubjectCard`
tables.py        image of a table or chart -> columns, rows, series
"""
