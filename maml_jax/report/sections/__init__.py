"""The sections of the HTML report, one topic per module.

A section is a function `section(run_groups, figure_writer) -> Html`. It returns
empty HTML if there are no data for it.
"""
