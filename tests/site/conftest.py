"""The site, built once."""

import pytest


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    from test_site import maker

    folder = tmp_path_factory.mktemp("site") / "site"
    assert maker.build(folder) == []
    return folder
