"""Form fields that the members' pages and the admin share."""

from django import forms


def secret_input() -> forms.PasswordInput:
    """
    Make a field for a key: hidden while it is typed, and never written back to a page.

    Browsers fill a saved login into a password field and the text field before it, whatever `autocomplete="off"` says;
    only `new-password` keeps them from it. https://html.spec.whatwg.org/#autofill
    The data attributes are what password managers respect.
    """
    return forms.PasswordInput(
        render_value=False,
        attrs={
            "autocomplete": "new-password",
            "data-1p-ignore": "true",
            "data-bwignore": "true",
            "data-lpignore": "true",
            "data-form-type": "other",
            "spellcheck": "false",
            "autocapitalize": "off",
            "class": "input--mono",
        },
    )
