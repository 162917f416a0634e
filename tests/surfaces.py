"""Small GIFTI files of one surface, written as several programs write them."""

import base64
import zlib

import numpy as np
from nibabel import gifti

ENCODINGS = {"gzip": "GZipBase64Binary", "base64": "Base64Binary", "ascii": "ASCII"}
TYPES = {"f4": "NIFTI_TYPE_FLOAT32", "i4": "NIFTI_TYPE_INT32", "u1": "NIFTI_TYPE_UINT8", "f8": "NIFTI_TYPE_FLOAT64"}
SIDES = {"L": "CortexLeft", "R": "CortexRight"}


def meta(items):
    """A MetaData element."""
    pairs = "".join(f"<MD><Name><![CDATA[{k}]]></Name><Value><![CDATA[{v}]]></Value></MD>" for k, v in items.items())
    return f"<MetaData>{pairs}</MetaData>"


def array(values, intent="TIME_SERIES", encoding="gzip", *, big=False, order="C", items=None, dims=None):
    """A DataArray element."""
    values = np.asarray(values)
    kind = TYPES[values.dtype.str[1:]]
    stored = values.astype(values.dtype.newbyteorder(">" if big else "<")).tobytes(order=order)
    if encoding == "ascii":
        text = " ".join(repr(x) for x in values.ravel(order=order).tolist())
    else:
        text = base64.b64encode(zlib.compress(stored) if encoding == "gzip" else stored).decode()
    sizes = " ".join(f'Dim{k}="{n}"' for k, n in enumerate(dims or values.shape))
    indexing = "RowMajorOrder" if order == "C" else "ColumnMajorOrder"
    return (
        f'<DataArray Intent="NIFTI_INTENT_{intent}" DataType="{kind}" ArrayIndexingOrder="{indexing}" '
        f'Dimensionality="{len(dims or values.shape)}" {sizes} Encoding="{ENCODINGS[encoding]}" '
        f'Endian="{"Big" if big else "Little"}Endian" ExternalFileName="" ExternalFileOffset="">'
        f"{meta(items or {})}<Data>{text}</Data></DataArray>"
    )


def document(arrays, side="L", table="", n=None):
    """A GIFTI document; without a side, it doesn't state its hemisphere."""
    stated = {"AnatomicalStructurePrimary": SIDES.get(side, side)} if side else {}
    return (
        '<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE GIFTI SYSTEM "http://www.nitrc.org/frs/download.php/115/gifti.'
        f'dtd"><GIFTI Version="1.0" NumberOfDataArrays="{len(arrays) if n is None else n}">{meta(stated)}{table}'
        f"{''.join(arrays)}</GIFTI>"
    )


def table(keys, names=None):
    """A LabelTable element."""
    rows = [
        f'<Label Key="{k}" Red="{k % 7 / 7}" Green="{k % 5 / 5}" Blue="0" Alpha="1"><![CDATA['
        f"{(names or {}).get(k, f'Parcel {k}')}]]></Label>"
        for k in keys
    ]
    return f"<LabelTable>{''.join(rows)}</LabelTable>"


def series(path, data, side="L", **options):
    """Write a series of shape (n_times, n_vertices), an array per time point; return its path."""
    path.write_text(document([array(row, **options) for row in data], side))
    return path


def labels(path, values, side="L", names=None, **options):
    """Write labels of shape (n_vertices,) or (n_maps, n_vertices); return the path."""
    maps = np.atleast_2d(values)
    items = [{"Name": f"map {k}"} for k in range(len(maps))]
    arrays = [array(row, "LABEL", items=one, **options) for row, one in zip(maps, items, strict=True)]
    path.write_text(document(arrays, side, table(np.unique(maps).tolist(), names)))
    return path


def in_memory(data, side="L"):
    """A series as an image of nibabel."""
    arrays = [gifti.GiftiDataArray(row, "NIFTI_INTENT_TIME_SERIES", row.dtype) for row in data]
    stated = {"AnatomicalStructurePrimary": SIDES[side]} if side else {}
    return gifti.GiftiImage(darrays=arrays, meta=gifti.GiftiMetaData(stated))


def by_definition(data, values, statistic=np.mean, background=0):
    """Signals of the regions, one number at a time: shape (n_times, n_regions)."""
    ids = sorted(set(np.asarray(values).tolist()) - {background})
    rows = np.asarray(data, np.float64).tolist()
    return np.array(
        [[statistic([x for x, own in zip(row, values, strict=True) if own == k]) for k in ids] for row in rows]
    )
