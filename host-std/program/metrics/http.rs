//! As much of HTTP/1.1 as a scrape takes: one request, one answer, and the end of the connection.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// Bytes of a request, its headers included.
const REQUEST_MAX: usize = 8192;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// How long a request may take to come.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// `GET /metrics`.
    Metrics,
    /// Anything else, and what it is answered.
    Wrong(Answer),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Metrics(String),
    BadRequest,
    NotFound,
    MethodNotAllowed,
    TooLarge,
    Failed(String),
}

/// Reads a request.
pub(super) fn read_request(from: &mut dyn Read) -> io::Result<Request> {
    let until = Instant::now() + REQUEST_TIMEOUT;
    let mut bytes = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let read = from.read(&mut buffer)?;
        bytes.extend_from_slice(&buffer[..read]);
        if let Some(request) = parse(&bytes) {
            return Ok(request);
        }
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// `None` until it is whole.
fn parse(bytes: &[u8]) -> Option<Request> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < REQUEST_MAX => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Some(Request::Wrong(Answer::TooLarge));
        }
        Ok(httparse::Status::Complete(_)) => {}
        Err(_) => return Some(Request::Wrong(Answer::BadRequest)),
    }
    let path = request.path.unwrap_or_default().split('?').next();
    Some(match (request.method, path) {
        (Some("GET"), Some("/metrics")) => Request::Metrics,
        (_, Some("/metrics")) => Request::Wrong(Answer::MethodNotAllowed),
        _ => Request::Wrong(Answer::NotFound),
    })
}

impl Answer {
    pub(super) fn bytes(&self) -> Vec<u8> {
        const PLAIN: &str = "text/plain; charset=utf-8";
        let (status, kind, body) = match self {
            Self::Metrics(text) => ("200 OK", super::encode::CONTENT_TYPE, text.as_str()),
            Self::BadRequest => ("400 Bad Request", PLAIN, "this is not HTTP; ask GET /metrics\n"),
            Self::NotFound => ("404 Not Found", PLAIN, "there is nothing here; ask GET /metrics\n"),
            Self::MethodNotAllowed => ("405 Method Not Allowed", PLAIN, "ask GET /metrics\n"),
            Self::TooLarge => {
                ("431 Request Header Fields Too Large", PLAIN, "too many headers; ask GET /metrics\n")
            }
            Self::Failed(error) => ("500 Internal Server Error", PLAIN, error.as_str()),
        };
        let allow = if *self == Self::MethodNotAllowed { "Allow: GET\r\n" } else { "" };
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_get_of_the_metrics_is_answered_with_them() {
        let whole = "GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(parse(whole.as_bytes()), Some(Request::Metrics));
        assert_eq!(parse(&whole.as_bytes()[..whole.len() - 1]), None);
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        let long = format!("GET /{}", "x".repeat(REQUEST_MAX));
        for (text, answer) in [
            ("GET / HTTP/1.1\r\n\r\n", Answer::NotFound),
            ("POST /metrics HTTP/1.1\r\n\r\n", Answer::MethodNotAllowed),
            ("\0\r\n\r\n", Answer::BadRequest),
            (&many, Answer::TooLarge),
            (&long, Answer::TooLarge),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(Request::Wrong(answer)), "{text}");
        }
    }
}
