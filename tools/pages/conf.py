"""Sphinx's settings for the site of the lessons; tools/website.py gathers what it is made of."""

project, author = "grpo_lib", "the grpo_lib authors"
extensions = ["myst_nb"]
exclude_patterns = ["**/.ipynb_checkpoints", "_static"]
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

nb_execution_mode = "off"  # the saved outputs are those that were tested
nb_mime_priority_overrides = [("html", "image/png", 5)]  # pictures, not dead widgets
nb_code_prompt_show, nb_code_prompt_hide = "Show the {type}", "Hide the {type}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

html_theme, html_title = "furo", "Learn GRPO by running it"
html_favicon = "icon.svg"
html_static_path = ["alive.css", "home.css", "alive.js"]
html_css_files = ["alive.css", "home.css"]
html_js_files = [("alive.js", {"defer": "defer"})]
html_show_sourcelink = html_copy_source = False
html_theme_options = {"light_css_variables": {"color-brand-primary": "#0072b2",
                                              "color-brand-content": "#0072b2"},
                      "dark_css_variables": {"color-brand-primary": "#56b4e9",
                                             "color-brand-content": "#56b4e9"}}
mathjax_path = "mathjax.js"  # below _static, where tools/website.py puts it
