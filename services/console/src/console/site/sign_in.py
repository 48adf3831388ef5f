"""The page on which a viewer signs in. It is plain HTML without a script, because its form carries a secret."""

import html

from fastapi import FastAPI, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from console.feeds.feed import in_words
from console.site.guard import SESSION_COOKIE, SIGN_IN_PATH
from console.site.viewers import SESSION_SECONDS, Viewers
from shop_client.errors import ShopError, Unauthenticated

TOKEN_LENGTH_MAX = 8192

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sign in – Shop console</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 26rem; margin: 12vh auto; padding: 0 1rem; }}
label {{ display: block; font-weight: 600; margin-bottom: .25rem; }}
input, button {{ font: inherit; width: 100%; box-sizing: border-box; padding: .6rem; margin-bottom: 1rem; }}
[role=alert] {{ border-left: 4px solid #b3261e; padding: .5rem .75rem; margin-bottom: 1rem; }}
</style>
</head>
<body>
<main>
<h1>Shop console</h1>
{alert}<form method="post" action="/sign-in">
<label for="token">API key or token</label>
<input id="token" name="token" type="password" autocomplete="off" required autofocus>
<button type="submit">Sign in</button>
</form>
<p>The console sends it with each of your calls. It keeps it in memory only, for up to eight hours.</p>
</main>
</body>
</html>
"""


def add_to(app: FastAPI, viewers: Viewers, *, is_https: bool) -> None:
    """Add the routes for signing in and out."""

    @app.get(SIGN_IN_PATH)
    async def show() -> Response:
        if not viewers.sign_in_required:
            return RedirectResponse("/", status_code=303)
        return HTMLResponse(_PAGE.format(alert=""))

    @app.post(SIGN_IN_PATH)
    async def sign_in(token: str = Form(max_length=TOKEN_LENGTH_MAX)) -> Response:
        try:
            session_id = await viewers.sign_in(token.strip())
        except Unauthenticated as error:
            return _refused(in_words(error), 401)
        except ShopError as error:
            return _refused(in_words(error), 503)
        except ValueError:
            return _refused("This is not an API key or a token.", 400)
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(
            SESSION_COOKIE, session_id, max_age=SESSION_SECONDS, httponly=True, samesite="strict", secure=is_https
        )
        return response

    @app.post("/sign-out")
    async def sign_out(request: Request) -> Response:
        await viewers.sign_out(request.cookies.get(SESSION_COOKIE))
        response = RedirectResponse(SIGN_IN_PATH, status_code=303)
        response.delete_cookie(SESSION_COOKIE)
        return response


def _refused(text: str, status: int) -> Response:
    return HTMLResponse(_PAGE.format(alert=f'<p role="alert">{html.escape(text)}</p>\n'), status_code=status)
