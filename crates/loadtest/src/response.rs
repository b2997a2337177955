//! Reading an HTTP/1.1 response, however its bytes arrive. Bodies are counted and thrown away.

/// The most a head, or the trailers of a chunked body, may take, bytes.
const MAX_HEAD: usize = 64 << 10;

/// The most header lines of a response.
const MAX_HEADERS: usize = 96;

/// What is no HTTP.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolError {
    #[error("the head of the response is malformed: {0}")]
    Head(httparse::Error),
    #[error("the head of the response has more than {MAX_HEAD} bytes")]
    HeadTooLarge,
    #[error("`content-length` is no number")]
    Length,
    #[error("a chunk of the body is malformed")]
    Chunk,
    #[error("the connection was closed in the middle of a response")]
    Cut,
}

/// A response on its way.
#[derive(Debug)]
pub(super) struct Response {
    state: State,
    /// The part of a head that has arrived, if not all of it came at once.
    head: Vec<u8>,
    /// Three digits, known once the head is complete.
    pub(super) status: u16,
    /// Whether another request may follow on this connection.
    pub(super) keep_alive: bool,
    /// Seconds, where the server says so in that form.
    pub(super) retry_after: Option<u64>,
    /// Bytes, head and framing included.
    pub(super) received: u64,
    /// The beginning of the body, as much as was asked to be kept.
    pub(super) body: Vec<u8>,
    keep: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// So many bytes of the body are still to come.
    Length(u64),
    Chunked(Chunk),
    UntilClose,
    Done,
}

/// Where in a chunked body we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// In the line with the size.
    Size {
        size: u64,
        digits: u8,
        extension: bool,
    },
    Data(u64),
    /// Behind a chunk: this many of its two line-ending bytes have come.
    End(u8),
    /// In the trailers: bytes of the current line, and of all.
    Trailer {
        line: usize,
        all: usize,
    },
}

const FIRST_CHUNK: Chunk = Chunk::Size { size: 0, digits: 0, extension: false };

impl Response {
    /// Keeps up to `keep` bytes of the body.
    pub(super) fn new(keep: usize) -> Self {
        Self {
            state: State::Head,
            head: Vec::new(),
            status: 0,
            keep_alive: false,
            retry_after: None,
            received: 0,
            body: Vec::new(),
            keep,
        }
    }

    /// Takes what has arrived; true once the response is complete.
    pub(super) fn feed(&mut self, mut data: &[u8]) -> Result<bool, ProtocolError> {
        self.received += data.len() as u64;
        while !data.is_empty() {
            data = match self.state {
                State::Head => self.feed_head(data)?,
                State::Length(left) => {
                    let taken = self.take(data, left);
                    let left = left - taken as u64;
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    &data[taken..]
                }
                State::Chunked(chunk) => self.feed_chunk(chunk, data)?,
                State::UntilClose => &data[self.take(data, u64::MAX)..],
                // More than was announced: what follows cannot be trusted to be the next response.
                State::Done => {
                    self.keep_alive = false;
                    &[]
                }
            };
        }
        Ok(self.state == State::Done)
    }

    /// The connection has ended: fine for a body that ends with it.
    pub(super) fn end(&mut self) -> Result<(), ProtocolError> {
        match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                self.keep_alive = false;
                Ok(())
            }
            _ => Err(ProtocolError::Cut),
        }
    }

    fn take(&mut self, data: &[u8], most: u64) -> usize {
        let taken = usize::try_from(most).map_or(data.len(), |most| data.len().min(most));
        let kept = taken.min(self.keep - self.body.len());
        self.body.extend_from_slice(&data[..kept]);
        taken
    }

    fn feed_head<'a>(&mut self, data: &'a [u8]) -> Result<&'a [u8], ProtocolError> {
        // Nearly always the head comes in one piece, and is not copied.
        if self.head.is_empty() {
            return match self.parse_head(data)? {
                Some(length) => Ok(&data[length..]),
                None => {
                    self.head.extend_from_slice(data);
                    Ok(&[])
                }
            };
        }
        let before = self.head.len();
        let mut head = std::mem::take(&mut self.head);
        head.extend_from_slice(data);
        match self.parse_head(&head)? {
            Some(length) => Ok(&data[length - before..]),
            None if head.len() > MAX_HEAD => Err(ProtocolError::HeadTooLarge),
            None => {
                self.head = head;
                Ok(&[])
            }
        }
    }

    /// The head's length if it is complete.
    fn parse_head(&mut self, data: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        let length = match parsed.parse(data).map_err(ProtocolError::Head)? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial => return Ok(None),
        };
        self.status = parsed.code.unwrap_or(0);
        // 100 Continue and its like: the response is still to come.
        if (100..200).contains(&self.status) {
            return Ok(Some(length));
        }
        self.keep_alive = parsed.version == Some(1);
        let (mut body_length, mut chunked) = (None, false);
        for header in parsed.headers.iter() {
            let value = str::from_utf8(header.value).unwrap_or_default().trim();
            let has = |word: &str| value.split(',').any(|token| token.trim().eq_ignore_ascii_case(word));
            if header.name.eq_ignore_ascii_case("content-length") {
                body_length = Some(value.parse::<u64>().map_err(|_| ProtocolError::Length)?);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                chunked |= has("chunked");
            } else if header.name.eq_ignore_ascii_case("connection") {
                self.keep_alive = !has("close") && (self.keep_alive || has("keep-alive"));
            } else if header.name.eq_ignore_ascii_case("retry-after") {
                self.retry_after = value.parse().ok();
            }
        }
        self.state = match (self.status, chunked, body_length) {
            (204 | 304, ..) | (_, false, Some(0)) => State::Done,
            (_, true, _) => State::Chunked(FIRST_CHUNK),
            (_, false, Some(length)) => State::Length(length),
            (_, false, None) => {
                self.keep_alive = false;
                State::UntilClose
            }
        };
        Ok(Some(length))
    }

    fn feed_chunk<'a>(&mut self, chunk: Chunk, data: &'a [u8]) -> Result<&'a [u8], ProtocolError> {
        let next = match chunk {
            Chunk::Data(left) => {
                let taken = self.take(data, left);
                let left = left - taken as u64;
                self.state = State::Chunked(if left == 0 { Chunk::End(0) } else { Chunk::Data(left) });
                return Ok(&data[taken..]);
            }
            Chunk::Size { size, digits, extension } => match (data[0], (data[0] as char).to_digit(16)) {
                (b'\n', _) if digits == 0 => return Err(ProtocolError::Chunk),
                (b'\n', _) if size == 0 => Chunk::Trailer { line: 0, all: 0 },
                (b'\n', _) => Chunk::Data(size),
                (_, Some(digit)) if !extension && digits < 15 => {
                    Chunk::Size { size: size << 4 | u64::from(digit), digits: digits + 1, extension }
                }
                (b';' | b' ' | b'\t' | b'\r', _) if digits > 0 => Chunk::Size { size, digits, extension: true },
                _ if extension => chunk,
                _ => return Err(ProtocolError::Chunk),
            },
            Chunk::End(0) if data[0] == b'\r' => Chunk::End(1),
            Chunk::End(1) if data[0] == b'\n' => FIRST_CHUNK,
            Chunk::End(_) => return Err(ProtocolError::Chunk),
            Chunk::Trailer { all, .. } if all > MAX_HEAD => return Err(ProtocolError::HeadTooLarge),
            Chunk::Trailer { line: 0, .. } if data[0] == b'\n' => {
                self.state = State::Done;
                return Ok(&data[1..]);
            }
            Chunk::Trailer { all, .. } if data[0] == b'\n' => Chunk::Trailer { line: 0, all: all + 1 },
            Chunk::Trailer { line, all } if data[0] == b'\r' => Chunk::Trailer { line, all: all + 1 },
            Chunk::Trailer { line, all } => Chunk::Trailer { line: line + 1, all: all + 1 },
        };
        self.state = State::Chunked(next);
        Ok(&data[1..])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    /// In pieces of the given size; None where it never became complete.
    fn read(bytes: &[u8], piece: usize) -> Result<Option<Response>, ProtocolError> {
        let mut response = Response::new(1000);
        let mut done = false;
        for piece in bytes.chunks(piece) {
            done = response.feed(piece)?;
        }
        Ok(done.then_some(response))
    }

    #[test]
    fn responses_are_read_however_they_are_cut() {
        let cases: [(&str, u16, &str, bool); 9] = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", true),
            ("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", 200, "", true),
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, "", true),
            (
                "HTTP/1.1 429 Slow\r\nConnection: close\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nno",
                429,
                "no",
                false,
            ),
            ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", false),
            ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\nB;x=\"y\"\r\n, you there\r\n0\r\n\r\n",
                200,
                "hello, you there",
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0002\r\nhi\r\n0\r\nx-sum: 1\r\ny: 2\r\n\r\n",
                200,
                "hi",
                true,
            ),
        ];
        for (text, status, body, keep_alive) in cases {
            for piece in [1, 2, 3, 7, text.len()] {
                let response = read(text.as_bytes(), piece).unwrap().unwrap_or_else(|| panic!("{piece}: {text}"));
                assert_eq!((response.status, response.keep_alive), (status, keep_alive), "{piece}: {text}");
                assert_eq!(str::from_utf8(&response.body), Ok(body), "{piece}: {text}");
                assert_eq!(response.received, text.len() as u64);
                assert_eq!(response.retry_after, (status == 429).then_some(7));
            }
            // One byte less is never enough.
            assert!(read(&text.as_bytes()[..text.len() - 1], 4).unwrap().is_none(), "{text}");
        }
    }

    #[test]
    fn a_body_without_length_ends_with_the_connection_and_no_other_does() {
        let mut response = Response::new(3);
        assert_eq!(response.feed(b"HTTP/1.1 200 OK\r\n\r\nuntil the end"), Ok(false));
        assert_eq!(response.end(), Ok(()));
        assert_eq!((response.keep_alive, &response.body[..]), (false, &b"unt"[..]));
        for text in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"] {
            let mut response = Response::new(0);
            assert_eq!(response.feed(text.as_bytes()), Ok(false));
            assert_eq!(response.end(), Err(ProtocolError::Cut));
        }
    }

    #[test]
    fn what_is_no_http_is_an_error() {
        for text in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        ] {
            assert!(read(text.as_bytes(), 5).is_err(), "{text}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD));
        assert_eq!(read(endless.as_bytes(), 1000).unwrap_err(), ProtocolError::HeadTooLarge);
        // Complete, but followed by something that nobody asked for.
        let more = read(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab", 100).unwrap().unwrap();
        assert!(!more.keep_alive);
    }
}
