//! Lets clients in whose `:authority` is the socket's path: gRPC's C core (Python, C++, Ruby …), Swift and Java send
//! `tmp%2Fworkload.sock` or `/tmp/workload.sock`, which no HTTP/2 library in Rust takes for an authority.
//!
//! ```text
//! client's bytes ─▶ preface ─▶ frames: HEADERS ─▶ literal `:authority` that is none: other letters, same length ─▶ h2
//!                                       others ─▶ as they are ────────────────────────────────────────────────────▲
//! ```
//!
//! A value that is not an authority is written over, letter by letter (`tmp-2Fworkload.sock`). Its length stays, so
//! that both sides' HPACK tables (RFC 7541 section 4.1) stay the same and no header has to be decoded but this one.
//! What is not understood here, or is too long, goes on unchanged and is judged by h2, whose limits all hold.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use httlib_huffman::DecoderSpeed;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n` (RFC 9113 section 3.4).
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// RFC 9113 section 4.2; we allow no more, so h2 refuses longer frames by their head.
const FRAME_MAX: usize = 16_384;
/// Paths of sockets have 107 bytes, three times that when each is escaped.
const AUTHORITY_MAX: usize = 512;
/// `:authority` in RFC 7541 appendix A.
const STATIC_AUTHORITY: usize = 1;
const NAME: &[u8] = b":authority";
const CHUNK: usize = 8 * 1024;

/// The client's side of one connection, in whatever pieces it comes. No I/O.
#[derive(Debug)]
pub(super) struct Filter {
    /// Bytes that go on as they are: of the preface, or of a frame that is of no interest.
    pass: usize,
    /// A frame's head, and all of a HEADERS frame.
    held: Vec<u8>,
}

impl Default for Filter {
    fn default() -> Self {
        Self { pass: PREFACE, held: Vec::new() }
    }
}

impl Filter {
    /// Takes what came and appends what goes on.
    pub(super) fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            if self.pass > 0 {
                let (now, later) = input.split_at(self.pass.min(input.len()));
                out.extend_from_slice(now);
                self.pass -= now.len();
                input = later;
                continue;
            }
            let wanted = head(&self.held).map_or(FRAME_HEAD, |head| FRAME_HEAD + head.length);
            let (now, later) = input.split_at((wanted - self.held.len()).min(input.len()));
            self.held.extend_from_slice(now);
            input = later;
            self.settle(out);
        }
    }

    /// Decides about a frame's head, or about a whole HEADERS frame.
    fn settle(&mut self, out: &mut Vec<u8>) {
        let Some(head) = head(&self.held) else { return };
        if head.kind != HEADERS || head.length > FRAME_MAX {
            out.append(&mut self.held);
            self.pass = head.length;
        } else if self.held.len() == FRAME_HEAD + head.length {
            let rewritten = rewrite(&self.held);
            out.extend_from_slice(rewritten.as_deref().unwrap_or(&self.held));
            self.held.clear();
        }
    }
}

struct Head {
    length: usize,
    kind: u8,
    flags: u8,
}

fn head(bytes: &[u8]) -> Option<Head> {
    let [a, b, c, kind, flags, ..] = *bytes.first_chunk::<FRAME_HEAD>()?;
    let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
    Some(Head { length, kind, flags })
}

/// A HEADERS frame with another authority; `None`: it stays as it is.
fn rewrite(frame: &[u8]) -> Option<Vec<u8>> {
    let flags = head(frame)?.flags;
    let padding = if flags & PADDED != 0 { usize::from(*frame.get(FRAME_HEAD)?) } else { 0 };
    let start = FRAME_HEAD + usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
    let block = frame.get(start..frame.len().checked_sub(padding)?)?;
    let mut out = frame.get(..start)?.to_vec();
    let mut copied = 0;
    for literal in Authorities(Fields { rest: block, at: 0 }) {
        let Some(value) = replacement(&literal.text) else { continue };
        out.extend_from_slice(block.get(copied..literal.start)?);
        put_string(&value, &mut out);
        copied = literal.end;
    }
    if copied == 0 {
        return None;
    }
    out.extend_from_slice(block.get(copied..)?);
    out.extend_from_slice(frame.get(frame.len() - padding..)?);
    let length = out.len() - FRAME_HEAD;
    // A literal that was compressed is longer now; where that no longer fits, h2 refuses what came.
    let [_, high, middle, low] = u32::try_from(length).ok().filter(|_| length <= FRAME_MAX)?.to_be_bytes();
    out.get_mut(..3)?.copy_from_slice(&[high, middle, low]);
    Some(out)
}

/// What stands for a value that is no authority: of the same length, and one.
fn replacement(text: &[u8]) -> Option<Vec<u8>> {
    let sound = http::uri::Authority::try_from(text).is_ok();
    if sound || text.is_empty() || text.len() > AUTHORITY_MAX {
        return None;
    }
    let plain = |byte: &u8| if byte.is_ascii_alphanumeric() || b"-._".contains(byte) { *byte } else { b'-' };
    Some(text.iter().map(plain).collect())
}

/// A string without compression (RFC 7541 section 5.2).
fn put_string(text: &[u8], out: &mut Vec<u8>) {
    if text.len() < 0x7f {
        out.push(u8::try_from(text.len()).unwrap_or_default());
    } else {
        out.push(0x7f);
        let mut rest = text.len() - 0x7f;
        while rest >= 0x80 {
            out.push(u8::try_from(rest & 0x7f).unwrap_or_default() | 0x80);
            rest >>= 7;
        }
        out.push(u8::try_from(rest).unwrap_or_default());
    }
    out.extend_from_slice(text);
}

/// The value of a literal `:authority`: where its string begins and ends in the block, and what it says.
struct Literal {
    start: usize,
    end: usize,
    text: Vec<u8>,
}

/// All of a block, up to where it cannot be read.
struct Authorities<'b>(Fields<'b>);

impl Iterator for Authorities<'_> {
    type Item = Literal;
    fn next(&mut self) -> Option<Literal> {
        loop {
            if let Some(found) = self.0.field()? {
                return Some(found);
            }
        }
    }
}

/// A header block, field by field (RFC 7541 section 6).
struct Fields<'b> {
    rest: &'b [u8],
    at: usize,
}

impl<'b> Fields<'b> {
    /// The next field: `Some(None)` if it is no literal `:authority`, `None` at the end.
    fn field(&mut self) -> Option<Option<Literal>> {
        let first = *self.rest.first()?;
        let name_bits = match first {
            0x80.. => {
                self.integer(7)?;
                return Some(None);
            }
            0x40..=0x7f => 6,
            0x20..=0x3f => {
                self.integer(5)?;
                return Some(None);
            }
            _ => 4,
        };
        let is_authority = match self.integer(name_bits)? {
            0 => self.string()?.says(NAME),
            index => index == STATIC_AUTHORITY,
        };
        let start = self.at;
        let value = self.string()?;
        if !is_authority || value.bytes.len() > AUTHORITY_MAX {
            return Some(None);
        }
        Some(value.decoded().map(|text| Literal { start, end: self.at, text }))
    }

    fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        (self.rest, self.at) = (rest, self.at + length);
        Some(taken)
    }

    /// RFC 7541 section 5.1; more than 28 bits behind the prefix are not read.
    fn integer(&mut self, prefix: u32) -> Option<usize> {
        let mask = (1usize << prefix) - 1;
        let [first] = *self.take(1)? else { return None };
        let mut value = usize::from(first) & mask;
        if value < mask {
            return Some(value);
        }
        for shift in [0, 7, 14, 21] {
            let [next] = *self.take(1)? else { return None };
            value += (usize::from(next) & 0x7f) << shift;
            if next & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn string(&mut self) -> Option<Text<'b>> {
        let compressed = self.rest.first()? & 0x80 != 0;
        let length = self.integer(7)?;
        Some(Text { bytes: self.take(length)?, compressed })
    }
}

struct Text<'b> {
    bytes: &'b [u8],
    compressed: bool,
}

impl Text<'_> {
    fn decoded(&self) -> Option<Vec<u8>> {
        if !self.compressed {
            return Some(self.bytes.to_vec());
        }
        let mut text = Vec::new();
        httlib_huffman::decode(self.bytes, &mut text, DecoderSpeed::FourBits).ok()?;
        Some(text)
    }

    fn says(&self, name: &[u8]) -> bool {
        self.bytes.len() <= name.len() && self.decoded().is_some_and(|text| text == name)
    }
}

/// A connection whose reading side goes through a [`Filter`].
#[derive(Debug)]
pub(super) struct Front<S> {
    stream: S,
    filter: Filter,
    /// What has been read and not yet taken; `taken` bytes of it have.
    ready: Vec<u8>,
    taken: usize,
    chunk: Box<[u8]>,
}

impl<S> Front<S> {
    pub(super) fn new(stream: S) -> Self {
        let chunk = vec![0; CHUNK].into_boxed_slice();
        Self { stream, filter: Filter::default(), ready: Vec::new(), taken: 0, chunk }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Front<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let waiting = this.ready.get(this.taken..).unwrap_or_default();
            if !waiting.is_empty() {
                let now = waiting.get(..out.remaining()).unwrap_or(waiting);
                out.put_slice(now);
                this.taken += now.len();
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            this.taken = 0;
            let mut chunk = ReadBuf::new(&mut this.chunk);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.filter.feed(chunk.filled(), &mut this.ready);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Front<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
