"""How often a run was queued, and how often by itself

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op


revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COLUMNS = {"attempt": "1", "restarts": "0", "restarts_round": "0"}


def upgrade() -> None:
    with op.batch_alter_table("runs", schema=None) as batch_op:
        for name, start in _COLUMNS.items():
            batch_op.add_column(sa.Column(name, sa.Integer(), nullable=False, server_default=start))
    with op.batch_alter_table("runs", schema=None) as batch_op:
        for name in _COLUMNS:
            batch_op.alter_column(name, server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("runs", schema=None) as batch_op:
        for name in _COLUMNS:
            batch_op.drop_column(name)
