"""The page that shows runs: `runs.py` reads their logs, `curves.py` makes figures a step, `page.py` one HTML file.

The page's own code is `page.html`, `page.css` and the four `.js` files, put together in this order.
"""
