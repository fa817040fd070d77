"""Products as stored: kinds of devices."""

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, or_, select

from engine.store.pages import Page, Paged, page_of, paged
from engine.store.tables import products
from engine.store.unique import insert_unique


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    id: str
    project_id: str
    name: str
    created_ms: int


def insert_product(connection: Connection, product: Product) -> None:
    taken = f"a product named {product.name!r} exists already"
    insert_unique(connection, products, asdict(product), taken)


def find_product(connection: Connection, project_id: str, asked: str) -> Product | None:
    """Return the product with this id, else the one with this name."""
    query = (
        select(products)
        .where(products.c.project_id == project_id)
        .where(or_(products.c.id == asked, products.c.name == asked))
        .order_by((products.c.id == asked).desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().first()
    return Product(**row) if row else None


def list_products(connection: Connection, project_id: str, page: Page) -> Paged[Product]:
    query = select(products).where(products.c.project_id == project_id)
    rows = connection.execute(page_of(query, products.c.id, page)).mappings()
    return paged([Product(**row) for row in rows], page, lambda product: product.id)
