"""Makes products: kinds of devices, to which triggers are bound."""

from engine.control import Control
from engine.errors import NotFound
from engine.ids import new_id
from engine.names import check_name
from engine.store.products import Product, find_product, insert_product


async def create_product(control: Control, project_id: str, name: str) -> Product:
    """Make a product.

    Raises:
        Conflict: the project has one of this name.
    """
    check_name(name)
    product = Product(
        id=new_id("prd"), project_id=project_id, name=name, created_ms=control.clock()
    )
    await control.journal.run(insert_product, product)
    return product


async def get_product(control: Control, project_id: str, asked: str) -> Product:
    """Return the product with this id or name."""
    product = await control.database.read(find_product, project_id, asked)
    if product is None:
        raise NotFound("product", asked)
    return product
