"""The report: one self-contained HTML page of a comparison or of one run, finished or not, and its figures as files.

``source`` reads the folder, ``charts`` and ``gallery`` say what to show, ``figures`` draws files, ``page`` renders.
"""
