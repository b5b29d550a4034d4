//! The HTTP of both listeners.

use std::{convert::Infallible, future::Future, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::api::{Cause, Refusal, Reply};

pub(super) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// How long a request may take to arrive.
const REQUEST: Duration = Duration::from_secs(10);
/// The longest body of a request, in bytes: some events to be imported. What else is asked is far shorter.
const MAX_BODY: usize = 8 << 20;
/// The type of a body with one JSON text in each line.
pub const LINES: &str = "application/jsonl";

/// Answers the requests of one connection.
pub(super) async fn serve<S, F>(
    stream: S,
    answer: impl Fn(Request<Incoming>) -> F,
) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Answer>,
{
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(REQUEST).max_buf_size(16 * 1024);
    http.serve_connection(TokioIo::new(stream), service).await
}

/// The body of a request.
///
/// # Errors
/// With a sentence, when it is too long or does not come.
pub(super) async fn body(request: Request<Incoming>) -> Result<Bytes, String> {
    let read = Limited::new(request.into_body(), MAX_BODY).collect();
    match tokio::time::timeout(REQUEST, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(format!("the request cannot be read: {error}")),
        Err(_) => Err("the request did not come in time".to_owned()),
    }
}

pub(super) fn text(code: StatusCode, text: impl Into<Bytes>) -> Answer {
    whole(code, "text/plain; charset=utf-8", text)
}

pub(super) fn whole(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    answer(code, kind, Full::new(body.into()).boxed_unsync())
}

pub(super) fn reply(reply: Reply) -> Answer {
    match reply {
        Reply::Done(value) => whole(StatusCode::OK, "application/json", value.to_string()),
        Reply::Refused(refusal) => refused(&refusal),
        Reply::Lines(lines) => {
            let lines = lines.map(|line| {
                // What the program made itself can be written as JSON.
                let mut text = serde_json::to_string(&line).unwrap_or_default();
                text.push('\n');
                Ok::<_, Infallible>(Frame::data(Bytes::from(text)))
            });
            let body = StreamBody::new(lines).boxed_unsync();
            answer(StatusCode::OK, LINES, body)
        }
    }
}

pub(super) fn refused(refusal: &Refusal) -> Answer {
    let code = match refusal.cause {
        Cause::Wrong => StatusCode::BAD_REQUEST,
        Cause::Unknown => StatusCode::NOT_FOUND,
        Cause::Refused => StatusCode::CONFLICT,
        Cause::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    };
    whole(code, "application/json", refusal.json().to_string())
}

fn answer(code: StatusCode, kind: &'static str, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
