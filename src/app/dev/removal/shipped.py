"""Which features of this project stay, and which parts of them can be removed. Every other feature in `FEATURES` can be removed."""

KEPT = {
    "health": "the platform asks it whether the process works, and every error document links to its pages.",
    "home": "`make run` and the first page of the service come from it.",
    "audit": "every change of an account is recorded with it.",
    "users": "it has the accounts that all other features refer to.",
    "auth": "it decides who may call each operation.",
    "account": "it has the passwords of the accounts and the links in mails.",
    "mail": "it sends the mails of all features.",
    "jobs": "it runs the background work of all features.",
}
"""Features and parts that stay, each with the reason."""

WORDS = {
    "audit_list": "audit-events",
    "email_change": "change of address",
    "registration": "(?i:registration)",
    "self_service": "account pages",
}
"""What documents call a part, if it is not its name."""

PARTS = {
    "audit_list": (
        "src/app/audit/listing",
        "src/app/audit/router.py",
        "src/app/audit/scopes.py",
        "tests/audit/access.py",
        "tests/audit/listing",
        "tests/hostile/test_audit_list.py",
    ),
}
"""Parts of features that can be removed, each with its files and directories. No other code imports them."""

REMOVABLE = {
    "self_service": ("docs/account-pages.md", "docs/images"),
    "registration": (
        "tests/races/test_registration.py",
        "tests/hostile/test_registration.py",
        "tests/self_service/test_unverified.py",
    ),
    "factors": (
        "docs/second-factor.md",
        "docs/decisions/0029-second-factor.md",
        "tests/self_service/test_second_factor.py",
    ),
    "email_change": (
        "tests/races/test_email_change.py",
        "tests/hostile/test_email_change.py",
        "tests/self_service/test_email_section.py",
        "tests/factors/test_email_change.py",
    ),
}
"""Features that can be removed, each with the files that are not in its two directories. Tests remove each in a copy."""
