"""Figures and HTML reports; the only package that uses matplotlib."""

from maml_jax.report.demo_plots import draw_demo, plot_curves, plot_episode
from maml_jax.report.page import write_report

__all__ = ['draw_demo', 'plot_curves', 'plot_episode', 'write_report']
