"""The key-value store of each project."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    in_bytes = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table(
        "kv",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("key", in_bytes, nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=True),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_kv_project_id")),
        sa.PrimaryKeyConstraint("project_id", "namespace", "key", name=op.f("pk_kv")),
    )
    op.create_index(
        op.f("ix_kv_expires_ms"),
        "kv",
        ["expires_ms"],
        sqlite_where=sa.text("expires_ms IS NOT NULL"),
        postgresql_where=sa.text("expires_ms IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("kv")  # and with it its index
