"""Bundling of Vega for the pages: `python -m dreambooth_core.reports.vega_bundle`, after a new version.

The library comes from `vl-convert-python`, a development dependency. The compressed bundle is part of the
repository, as making it takes seconds.
"""

import gzip

from dreambooth_core.reports import TEMPLATES

BUNDLE = TEMPLATES / "vega.js.gz"
NOTICE = """\
/*! Vega, Vega-Lite, Vega-Embed, Vega-Tooltip, Vega-Themes and Vega-Interpreter, unchanged, as
bundled by vl-convert; with parts of d3 and topojson (ISC, Mike Bostock), delaunator (ISC, Mapbox),
robust-predicates (Unlicense), fast-json-patch, json-stringify-pretty-compact and lodash (MIT), and
semver (ISC). The licence of the first six:

Copyright (c) 2015-2025, University of Washington Interactive Data Lab and contributors.
All rights reserved.

Redistribution and use in source and binary forms, with or without modification, are permitted
provided that the following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this list of conditions
   and the following disclaimer.
2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions
   and the following disclaimer in the documentation and/or other materials provided with the
   distribution.
3. Neither the name of the copyright holder nor the names of its contributors may be used to endorse
   or promote products derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR
IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND
FITNESS FOR A PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR
CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL
DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE,
DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER
IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF
THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE. */
"""


def library() -> str:
    """JavaScript that defines `vegaEmbed`, with its licence."""
    import vl_convert

    return NOTICE + vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


if __name__ == "__main__":
    BUNDLE.write_bytes(gzip.compress(library().encode(), 9, mtime=0))
    print(BUNDLE)
