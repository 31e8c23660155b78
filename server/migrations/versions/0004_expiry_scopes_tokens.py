"""Cohorts expire, keys have scopes, quotas and successors, and give short-lived tokens

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op


revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("cohorts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("expires_at", sa.DateTime(), nullable=True))
        batch_op.add_column(sa.Column("removed_at", sa.DateTime(), nullable=True))
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.add_column(sa.Column("scopes", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("rows_per_day", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("replaced_by", sa.Text(), nullable=True))
    op.create_table(
        "access_tokens",
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["key"], ["api_keys.prefix"], name=op.f("fk_access_tokens_key")),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_access_tokens")),
    )
    with op.batch_alter_table("access_tokens", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_access_tokens_expires_at"), ["expires_at"], unique=False)


def downgrade() -> None:
    op.drop_table("access_tokens")
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        for name in ("scopes", "rows_per_day", "replaced_by"):
            batch_op.drop_column(name)
    with op.batch_alter_table("cohorts", schema=None) as batch_op:
        for name in ("expires_at", "removed_at"):
            batch_op.drop_column(name)
