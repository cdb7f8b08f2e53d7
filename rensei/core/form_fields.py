"""Form fields that the members' pages and the admin share."""

from django import forms


def secret_input() -> forms.PasswordInput:
    """
    Make a field for a key: hidden while it is typed, and never written back to a page.

    Browsers fill a saved login into a password field and the text field before it, even with `autocomplete="off"`;
    only `new-password` prevents it. https://html.spec.whatwg.org/#autofill
    Password managers respect the data attributes.
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
