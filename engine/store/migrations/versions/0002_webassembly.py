"""Room for WebAssembly: a version's options, its module, and what the module was compiled to."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The default is kept: it is what versions have that were uploaded before.
    op.add_column("versions", sa.Column("options", sa.Text(), server_default="{}", nullable=False))
    op.create_table(
        "wasm_modules",
        sa.Column("version_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("wasm", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["versions.id"],
            name=op.f("fk_wasm_modules_version_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("version_id", name=op.f("pk_wasm_modules")),
    )
    op.create_table(
        "artifacts",
        sa.Column("version_id", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["versions.id"],
            name=op.f("fk_artifacts_version_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("version_id", "fingerprint", name=op.f("pk_artifacts")),
    )


def downgrade() -> None:
    # Without its module a function could not run. What hangs on it goes by cascade.
    op.execute("DELETE FROM functions WHERE runtime = 'wasm'")
    op.drop_table("artifacts")
    op.drop_table("wasm_modules")
    # Not by `batch_alter_table`: it would make the table anew, and with the old one would go
    # everything that refers to it by ON DELETE CASCADE.
    op.drop_column("versions", "options")
