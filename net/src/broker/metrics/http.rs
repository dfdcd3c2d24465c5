//! As much of HTTP/1.1 as one page needs: is this a request for it, and how is it answered. Pure.

/// Bytes of a request at most.
pub(crate) const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Header fields of a request at most.
const FIELDS_MAX: usize = 64;

/// What a request comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is for the page of metrics.
    Page,
    /// It is refused.
    Refused(Refusal),
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    BadRequest,
    NotFound,
    MethodNotAllowed,
    TooLarge,
}

/// Looks at what was received so far. `None`: more is needed.
pub(crate) fn parse(received: &[u8]) -> Option<Outcome> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(received) {
        Ok(httparse::Status::Partial) if received.len() >= REQUEST_BYTES_MAX => {
            Some(Outcome::Refused(Refusal::TooLarge))
        }
        Ok(httparse::Status::Partial) => None,
        Err(httparse::Error::TooManyHeaders) => Some(Outcome::Refused(Refusal::TooLarge)),
        Err(_) => Some(Outcome::Refused(Refusal::BadRequest)),
        Ok(httparse::Status::Complete(_)) => {
            let target = request.path.unwrap_or_default();
            let path = target.split_once('?').map_or(target, |(path, _)| path);
            Some(match (path, request.method) {
                ("/metrics", Some("GET")) => Outcome::Page,
                ("/metrics", _) => Outcome::Refused(Refusal::MethodNotAllowed),
                _ => Outcome::Refused(Refusal::NotFound),
            })
        }
    }
}

/// An answer, and what it carries.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body: String,
}

/// The answer that carries a page.
pub(crate) fn page(text: String) -> Answer {
    answer("200 OK", "", "text/plain; version=0.0.4; charset=utf-8", text)
}

/// The answer that says no.
pub(crate) fn refusal(refusal: Refusal) -> Answer {
    let (status, more) = match refusal {
        Refusal::BadRequest => ("400 Bad Request", ""),
        Refusal::NotFound => ("404 Not Found", ""),
        Refusal::MethodNotAllowed => ("405 Method Not Allowed", "Allow: GET\r\n"),
        Refusal::TooLarge => ("431 Request Header Fields Too Large", ""),
    };
    answer(status, more, "text/plain; charset=utf-8", "Metrics are at /metrics.\n".to_owned())
}

/// Every answer is the last of its connection.
fn answer(status: &str, more: &str, content_type: &str, body: String) -> Answer {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\n{more}Content-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    Answer { head, body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_get_of_the_page_is_served() {
        for (request, outcome) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Some(Outcome::Page)),
            ("GET /metrics?name=a HTTP/1.0\r\n\r\n", Some(Outcome::Page)),
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n", None),
            ("GET", None),
            ("POST /metrics HTTP/1.1\r\n\r\n", Some(Outcome::Refused(Refusal::MethodNotAllowed))),
            ("GET / HTTP/1.1\r\n\r\n", Some(Outcome::Refused(Refusal::NotFound))),
            ("GET /metrics/x HTTP/1.1\r\n\r\n", Some(Outcome::Refused(Refusal::NotFound))),
            ("\0\0\0\x12", Some(Outcome::Refused(Refusal::BadRequest))),
            ("GET /metrics HTTP/9\r\n\r\n", Some(Outcome::Refused(Refusal::BadRequest))),
        ] {
            assert_eq!(parse(request.as_bytes()), outcome, "{request:?}");
        }
    }

    #[test]
    fn a_request_without_end_is_cut_off() {
        let mut request = b"GET /metrics HTTP/1.1\r\nA: ".to_vec();
        request.resize(REQUEST_BYTES_MAX - 1, b'a');
        assert_eq!(parse(&request), None);
        request.push(b'a');
        assert_eq!(parse(&request), Some(Outcome::Refused(Refusal::TooLarge)));
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(FIELDS_MAX + 1));
        assert_eq!(parse(many.as_bytes()), Some(Outcome::Refused(Refusal::TooLarge)));
    }

    #[test]
    fn answers_say_how_long_they_are() {
        let Answer { head, body } = page("a 1\n".to_owned());
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Content-Length: 4\r\n"), "{head}");
        assert!(head.ends_with("\r\n\r\n") && body == "a 1\n");
        let refused = refusal(Refusal::MethodNotAllowed);
        assert!(refused.head.starts_with("HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\n"), "{refused:?}");
    }
}
