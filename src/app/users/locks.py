"""The order in which transactions lock rows. Transactions that use one order cannot deadlock.

1. Accounts: the rows of all accounts that act or are changed, in one statement, by ascending id.
2. Login sessions. A transaction that locks several sessions of an account has locked the account before. Any other transaction
   locks at most one session, or skips locked ones.
3. Everything that belongs to an account: links, revocations, the rows of other features. An insert that refers to an account
   takes a share lock on its row, so it also comes after step 1.

Counters of attempts (`core.security.rate_limits`) are locked by ascending key, after everything else. Only the counters of mails
are locked before step 1.

`Principal.confirm` does steps 1 and 2 for a write by its caller. Purges lock no account, and skip locked rows.
"""

from sqlalchemy import Select

from app.users.models import User


def in_order[*Columns](statement: Select[*Columns]) -> Select[*Columns]:
    """Make a statement lock the accounts that it selects, by ascending id.

    The lock is exclusive: with shared locks, a steady stream of writes could starve a login or a demotion. Inserts that refer to
    the account do not wait for the lock.
    """
    return statement.order_by(User.id).with_for_update(key_share=True, of=User)
