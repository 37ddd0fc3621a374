"""`python -m mld_core.service.server`: a server whose settings all come from `MLD_SERVER_*` variables."""

from mld_core.service.server.run import serve
from mld_core.service.server.settings import load_settings

if __name__ == "__main__":
    serve(load_settings())
