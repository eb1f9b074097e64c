"""The HTTP API of the search, described as OpenAPI 3.1."""

from typing import Any


def _of(schema, **more):
    return {"content": {"application/json": {"schema": schema}}, "description": "what was asked for", **more}


def _query(name, kind, description, **more):
    return {"name": name, "in": "query", "description": description, "schema": {"type": kind, **more}}


def _ref(name):
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items):
    return {"type": "array", "items": items}


def _object(properties):
    return {"type": "object", "required": list(properties), "properties": properties}


def _or_none(kind):
    return {"type": [kind, "null"]}


_JPEG = {"description": "a JPEG", "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
_REFUSED = {"description": "why not", "content": {"application/json": {"schema": _ref("Error")}}}
_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}
_UPLOAD_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_PAGE = [
    _query("offset", "integer", "how many to pass over", minimum=0, default=0),
    _query("limit", "integer", "how many at most", minimum=1, maximum=500, default=100),
]
_HOW = [
    _query("box", "string", "a region, left,top,right,bottom as shares from 0 to 1, such as 0.1,0.2,0.5,0.9"),
    _query("k", "integer", "photos a list, at most", minimum=1, maximum=500, default=20),
    _query("precision", "number", "share of a list that shall be right", default=0.9),
    _query("expand", "integer", "neighbours that the query is joined with", minimum=0, maximum=50, default=0),
]
_DECISION = _object(
    {
        "skip": {"type": "boolean", "description": "all of it is kept"},
        "go": {"type": "array", "items": {"type": "integer"}, "description": "numbers of the photos that go"},
    }
)
_WORK = _object(
    {
        "running": {"type": "boolean"},
        "done": {"type": "integer"},
        "total": {"type": "integer"},
        "error": _or_none("string"),
    }
)
_SCHEMAS = {
    "Error": _object({"error": {"type": "string", "description": "one line"}}),
    "Photo": _object(
        {
            "id": {"type": "integer"},
            "name": {"type": "string", "description": "its path below the folder; odd characters as escapes"},
            "width": _or_none("integer"),
            "height": _or_none("integer"),
            "bytes": _or_none("integer"),
            "modified": {"type": ["string", "null"], "format": "date-time"},
            "class": _or_none("string"),
            "probability": _or_none("number"),
            "thumbnail": {"type": "string", "description": "where there is a JPEG, 256 pixels at most a side"},
            "picture": {"type": "string", "description": "where there is a JPEG, 1600 pixels at most a side"},
        }
    ),
    "Hit": _object({"photo": _ref("Photo"), "similarity": {"type": "number", "description": "cosine"}}),
    "Class": _object({"name": {"type": "string"}, "probability": {"type": "number"}}),
    "Answer": _object(
        {
            "query": _object(
                {
                    "photo": {"oneOf": [_ref("Photo"), {"type": "null"}]},
                    "upload": _or_none("string"),
                    "picture": {"type": "string"},
                    "box": {"type": ["array", "null"], "items": {"type": "number"}},
                }
            ),
            "classes": _list(_ref("Class")),
            "copies": _list(_ref("Hit")),
            "instances": _list(_ref("Hit")),
            "kind": _list(_ref("Hit")),
            "thresholds": _object({"copy": {"type": "number"}, "instance": {"type": "number"}}),
            "estimated": {"type": "boolean", "description": "whether the thresholds are a rule of thumb"},
            "photos": {"type": "integer", "description": "how many were searched"},
        }
    ),
    "Status": _object(
        {
            "folder": {"type": "string", "description": "or the address of a collection"},
            "collection": {"type": "boolean", "description": "whether it is one, without update and duplicates"},
            "photos": {"type": "integer"},
            "unusable": {"type": "integer"},
            "passed_over": {"type": "integer", "description": "files and folders that are no photos"},
            "why_passed_over": _or_none("string"),
            "classes": {"type": "boolean", "description": "whether the model knows classes"},
            "indexing": _WORK,
            "comparing": _WORK,
            "limits": _object({"bytes": {"type": "integer"}, "pixels": {"type": "integer"}}),
        }
    ),
    "Group": _object(
        {
            "key": {"type": "string", "description": "what it is decided about by"},
            "decision": _DECISION,
            "changed": {
                "type": "boolean",
                "description": "whether a photo is gone or another since",
            },
            "kind": {"enum": ["equal", "copy", "similar"]},
            "keep": _ref("Photo"),
            "why": {"type": "string"},
            "members": _list(
                _object(
                    {
                        "photo": _ref("Photo"),
                        "relation": {"enum": ["equal", "copy", "similar"]},
                        "similarity": {"type": "number"},
                        "verified": {
                            "type": ["number", "null"],
                            "description": "of a copy by its pixels, the share that is the same",
                        },
                        "spare": {"type": "boolean", "description": "whether it may go"},
                    }
                )
            ),
        }
    ),
}


def _get(summary, schema, parameters=(), **more):
    return {"get": _operation(summary, _of(schema) if schema is not _JPEG else _JPEG, parameters, **more)}


def _operation(summary, answer, parameters=(), **more):
    return {
        "summary": summary,
        "parameters": list(parameters),
        "responses": {"200": answer, "default": _REFUSED},
        **more,
    }


def description() -> dict[str, Any]:
    """The document, as JSON has it."""
    upload = {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
    by = [
        _query("photo", "integer", "by a photo of the album"),
        _query("upload", "string", "by a photo that was sent before"),
    ]
    started = _object({"started": {"type": "boolean", "description": "false: it goes on already"}})
    precision = [_query("precision", "number", "share of the pairs that shall be right", default=0.99)]
    kinds = [_query("kind", "string", "groups of this kind alone", enum=["equal", "copy", "similar"])]
    paths = {
        "/api/status": _get("What there is, and what goes on", _ref("Status")),
        "/api/update": {"post": _operation("Look at the folder again", _of(started))},
        "/api/search": {
            **_get("Copies, the same thing and the same kind, by a photo that is there", _ref("Answer"), [*by, *_HOW]),
            "post": _operation("The same, by the photo in the body", _of(_ref("Answer")), _HOW, requestBody=upload),
        },
        "/api/same": _get(
            "Which photos are copies of a query by their pixels, and the share that is the same",
            _list(_object({"id": {"type": "integer"}, "verified": {"type": "number"}})),
            [
                *by,
                *_HOW[:1],
                _query("of", "string", "numbers of photos by commas, 32 at most; those that are gone are left out"),
            ],
        ),
        "/api/uploads/{id}/picture": _get("A photo that was sent", _JPEG, [_UPLOAD_ID]),
        "/api/photos": _get(
            "Photos in order of name, or by the words of a class, most probable first",
            _object({"total": _or_none("integer"), "more": {"type": "boolean"}, "photos": _list(_ref("Photo"))}),
            [
                *_PAGE,
                _query("class", "string", "of this likeliest class alone"),
                _query("text", "string", "a class's name, or words of names, such as schooner"),
            ],
        ),
        "/api/photos/{id}": _get("A photo", _ref("Photo"), [_ID]),
        "/api/photos/{id}/thumbnail": _get("A small picture of it", _JPEG, [_ID]),
        "/api/photos/{id}/picture": _get("A picture of it", _JPEG, [_ID]),
        "/api/unusable": _get(
            "Photos that can't be used, and why",
            _list(_object({"name": {"type": "string"}, "problem": {"type": "string"}})),
            _PAGE,
        ),
        "/api/classes": _get(
            "Of how many photos each class is the likeliest, most frequent first",
            _list(_object({"name": {"type": "string"}, "photos": {"type": "integer"}})),
        ),
        "/api/duplicates": {
            **_get(
                "The groups that were found last",
                _object(
                    {
                        "found": {"type": "boolean", "description": "false: nothing was looked for yet"},
                        "total": {"type": "integer"},
                        "spare": {"type": "integer"},
                        "spare_bytes": {"type": "integer"},
                        "estimated": {"type": "boolean"},
                        "verified": {"type": "boolean", "description": "whether copies were found by their pixels"},
                        "groups": _list(_ref("Group")),
                    }
                ),
                [*_PAGE, *kinds],
            ),
            "post": _operation("Look for duplicates", _of(started), precision),
        },
        "/api/decisions": {
            "post": _operation(
                "Decide what happens to a group, in place of what is proposed; mg-keras duplicates --move-to does it",
                _of(_object({"noted": {"type": "boolean"}})),
                requestBody={
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": _object({"key": {"type": "string"}, **_DECISION["properties"]}),
                        }
                    },
                },
            )
        },
        "/api/openapi.json": _get("This description", {"type": "object"}),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "mg_keras search", "version": "1", "description": "Search of a folder of photos"},
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }
