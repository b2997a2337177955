//! Incremental parser of HTTP/1.1 responses. Bodies are counted; only their beginning is stored.

/// Largest size of a head, and of the trailers of a chunked body, bytes.
const MAX_HEAD: usize = 64 << 10;

/// Largest number of header lines of a response.
const MAX_HEADERS: usize = 96;

/// The reason why the received bytes are not a complete HTTP response.
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

/// Parser of one response. Bytes may arrive in pieces of any size.
#[derive(Debug)]
pub(super) struct ResponseParser {
    state: ParserState,
    /// The part of the head received so far, if it did not arrive in one piece.
    head: Vec<u8>,
    /// Status code; 0 until the head is complete.
    pub(super) status: u16,
    /// Whether the connection can carry another request.
    pub(super) keep_alive: bool,
    /// Value of `Retry-After`, seconds; `None` if absent or a date.
    pub(super) retry_after: Option<u64>,
    /// Bytes received, head and framing included.
    pub(super) received: u64,
    /// Beginning of the body, at most `body_limit` bytes.
    pub(super) body: Vec<u8>,
    body_limit: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ParserState {
    Head,
    /// In a body of known length; the number of bytes still to come.
    Length(u64),
    Chunked(ChunkState),
    /// In a body that ends when the connection closes.
    UntilClose,
    Done,
}

/// Position within a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    /// In the line with the chunk's size.
    Size { size: u64, digits: u8, extension: bool },
    /// In the chunk's data; the number of bytes still to come.
    Data(u64),
    /// After the chunk's data; the number of its two line-ending bytes received.
    End(u8),
    /// In the trailers: bytes of the current line, and of all lines.
    Trailer { line: usize, all: usize },
}

const FIRST_CHUNK: ChunkState = ChunkState::Size { size: 0, digits: 0, extension: false };

impl ResponseParser {
    /// Creates a parser that stores at most `body_limit` bytes of the body.
    pub(super) fn new(body_limit: usize) -> Self {
        Self {
            state: ParserState::Head,
            head: Vec::new(),
            status: 0,
            keep_alive: false,
            retry_after: None,
            received: 0,
            body: Vec::new(),
            body_limit,
        }
    }

    /// Parses received bytes. Returns true once the response is complete.
    pub(super) fn feed(&mut self, mut data: &[u8]) -> Result<bool, ProtocolError> {
        self.received += data.len() as u64;
        while !data.is_empty() {
            data = match self.state {
                ParserState::Head => self.feed_head(data)?,
                ParserState::Length(left) => {
                    let taken = self.take_body(data, left);
                    let left = left - taken as u64;
                    self.state = if left == 0 { ParserState::Done } else { ParserState::Length(left) };
                    &data[taken..]
                }
                ParserState::Chunked(chunk) => self.feed_chunk(chunk, data)?,
                ParserState::UntilClose => &data[self.take_body(data, u64::MAX)..],
                // More bytes than announced: they need not be the next response.
                ParserState::Done => {
                    self.keep_alive = false;
                    &[]
                }
            };
        }
        Ok(self.state == ParserState::Done)
    }

    /// Handles the end of the connection, which completes a body without a length and is an error otherwise.
    pub(super) fn finish(&mut self) -> Result<(), ProtocolError> {
        match self.state {
            ParserState::UntilClose | ParserState::Done => {
                self.state = ParserState::Done;
                self.keep_alive = false;
                Ok(())
            }
            _ => Err(ProtocolError::Cut),
        }
    }

    /// Consumes at most `max` bytes of body data. Returns the number of bytes consumed.
    fn take_body(&mut self, data: &[u8], max: u64) -> usize {
        let taken = usize::try_from(max).map_or(data.len(), |max| data.len().min(max));
        let stored = taken.min(self.body_limit - self.body.len());
        self.body.extend_from_slice(&data[..stored]);
        taken
    }

    fn feed_head<'a>(&mut self, data: &'a [u8]) -> Result<&'a [u8], ProtocolError> {
        // The head nearly always arrives in one piece; then it is not copied.
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

    /// Parses a head. Returns its length if it is complete.
    fn parse_head(&mut self, data: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        let length = match parsed.parse(data).map_err(ProtocolError::Head)? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial => return Ok(None),
        };
        self.status = parsed.code.unwrap_or(0);
        // An interim response such as 100 Continue: the final one is still to come.
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
            (204 | 304, ..) | (_, false, Some(0)) => ParserState::Done,
            (_, true, _) => ParserState::Chunked(FIRST_CHUNK),
            (_, false, Some(length)) => ParserState::Length(length),
            (_, false, None) => {
                self.keep_alive = false;
                ParserState::UntilClose
            }
        };
        Ok(Some(length))
    }

    fn feed_chunk<'a>(&mut self, chunk: ChunkState, data: &'a [u8]) -> Result<&'a [u8], ProtocolError> {
        let next = match chunk {
            ChunkState::Data(left) => {
                let taken = self.take_body(data, left);
                let left = left - taken as u64;
                self.state = ParserState::Chunked(if left == 0 { ChunkState::End(0) } else { ChunkState::Data(left) });
                return Ok(&data[taken..]);
            }
            ChunkState::Size { size, digits, extension } => match (data[0], (data[0] as char).to_digit(16)) {
                (b'\n', _) if digits == 0 => return Err(ProtocolError::Chunk),
                (b'\n', _) if size == 0 => ChunkState::Trailer { line: 0, all: 0 },
                (b'\n', _) => ChunkState::Data(size),
                (_, Some(digit)) if !extension && digits < 15 => {
                    ChunkState::Size { size: size << 4 | u64::from(digit), digits: digits + 1, extension }
                }
                (b';' | b' ' | b'\t' | b'\r', _) if digits > 0 => ChunkState::Size { size, digits, extension: true },
                _ if extension => chunk,
                _ => return Err(ProtocolError::Chunk),
            },
            ChunkState::End(0) if data[0] == b'\r' => ChunkState::End(1),
            ChunkState::End(1) if data[0] == b'\n' => FIRST_CHUNK,
            ChunkState::End(_) => return Err(ProtocolError::Chunk),
            ChunkState::Trailer { all, .. } if all > MAX_HEAD => return Err(ProtocolError::HeadTooLarge),
            ChunkState::Trailer { line: 0, .. } if data[0] == b'\n' => {
                self.state = ParserState::Done;
                return Ok(&data[1..]);
            }
            ChunkState::Trailer { all, .. } if data[0] == b'\n' => ChunkState::Trailer { line: 0, all: all + 1 },
            ChunkState::Trailer { line, all } if data[0] == b'\r' => ChunkState::Trailer { line, all: all + 1 },
            ChunkState::Trailer { line, all } => ChunkState::Trailer { line: line + 1, all: all + 1 },
        };
        self.state = ParserState::Chunked(next);
        Ok(&data[1..])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    /// Parses `bytes` in pieces of `size` bytes. `None` if the response is incomplete.
    fn parse(bytes: &[u8], size: usize) -> Result<Option<ResponseParser>, ProtocolError> {
        let mut response = ResponseParser::new(1000);
        let mut done = false;
        for piece in bytes.chunks(size) {
            done = response.feed(piece)?;
        }
        Ok(done.then_some(response))
    }

    #[test]
    fn responses_are_parsed_in_pieces_of_any_size() {
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
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n\
                 B;x=\"y\"\r\n, you there\r\n0\r\n\r\n",
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
            for size in [1, 2, 3, 7, text.len()] {
                let response = parse(text.as_bytes(), size).unwrap().unwrap_or_else(|| panic!("{size}: {text}"));
                assert_eq!((response.status, response.keep_alive), (status, keep_alive), "{size}: {text}");
                assert_eq!(str::from_utf8(&response.body), Ok(body), "{size}: {text}");
                assert_eq!(response.received, text.len() as u64);
                assert_eq!(response.retry_after, (status == 429).then_some(7));
            }
            // Without its last byte a response is incomplete.
            assert!(parse(&text.as_bytes()[..text.len() - 1], 4).unwrap().is_none(), "{text}");
        }
    }

    #[test]
    fn only_a_body_without_length_may_end_with_the_connection() {
        let mut response = ResponseParser::new(3);
        assert_eq!(response.feed(b"HTTP/1.1 200 OK\r\n\r\nuntil the end"), Ok(false));
        assert_eq!(response.finish(), Ok(()));
        assert_eq!((response.keep_alive, &response.body[..]), (false, &b"unt"[..]));
        for text in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"] {
            let mut response = ResponseParser::new(0);
            assert_eq!(response.feed(text.as_bytes()), Ok(false));
            assert_eq!(response.finish(), Err(ProtocolError::Cut));
        }
    }

    #[test]
    fn malformed_responses_are_errors() {
        for text in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        ] {
            assert!(parse(text.as_bytes(), 5).is_err(), "{text}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD));
        assert_eq!(parse(endless.as_bytes(), 1000).unwrap_err(), ProtocolError::HeadTooLarge);
        // Complete, but followed by bytes that no request caused.
        let longer = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab", 100).unwrap().unwrap();
        assert!(!longer.keep_alive);
    }
}
