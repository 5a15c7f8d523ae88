//! The first bytes of a dedicated session: which port is wanted, and whether it is to be had.
//!
//! ```text
//! client ─▶ u16 length, "namespace/name:port"
//! server ─▶ 0                                    the application's connection stands; its bytes follow
//!         │ 1, u16 length, protobuf Refused      the session ends
//! ```

use std::io;

use hawser_api::proto::tunnel::Refused;
use hawser_api::{Refusal, ServicePort};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest text: three labels' worth and a port are 133 bytes; the rest is margin for other spellings to come.
const TARGET_MAX: usize = 512;
/// Longest refusal: two texts of at most [`TEXT_MAX`](hawser_api::refusal::TEXT_MAX) characters of four bytes.
const REFUSED_MAX: usize = 8 << 10;

const OK: u8 = 0;
const NO: u8 = 1;

/// Asks for a port; the caller flushes.
pub(crate) async fn ask(stream: &mut (impl AsyncWrite + Unpin), target: &ServicePort) -> io::Result<()> {
    write_block(stream, &[], target.to_string().as_bytes()).await
}

/// Reads what is asked for.
pub(crate) async fn asked(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<ServicePort> {
    let text = read_block(stream, TARGET_MAX).await?;
    let text = std::str::from_utf8(&text).map_err(|_| invalid("the preface is not text"))?;
    text.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Says yes.
pub(crate) async fn confirm(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    stream.write_all(&[OK]).await?;
    stream.flush().await
}

/// Says no.
pub(crate) async fn refuse(stream: &mut (impl AsyncWrite + Unpin), refusal: &Refusal) -> io::Result<()> {
    let mut refused = refusal.to_wire();
    for text in [&mut refused.message, &mut refused.remedy] {
        if let Some((end, _)) = text.char_indices().nth(hawser_api::refusal::TEXT_MAX) {
            text.truncate(end);
        }
    }
    write_block(stream, &[NO], &refused.encode_to_vec()).await?;
    stream.flush().await
}

/// Waits for the answer: `Ok(Err(refusal))` is a no.
pub(crate) async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Result<(), Refusal>> {
    match stream.read_u8().await? {
        OK => Ok(Ok(())),
        NO => {
            let frame = read_block(stream, REFUSED_MAX).await?;
            let refused = Refused::decode(frame.as_slice()).map_err(|_| invalid("the refusal is malformed"))?;
            Ok(Err(Refusal::from_wire(&refused)))
        }
        _ => Err(invalid("the answer is neither yes nor no")),
    }
}

async fn write_block(stream: &mut (impl AsyncWrite + Unpin), before: &[u8], block: &[u8]) -> io::Result<()> {
    let length = u16::try_from(block.len()).map_err(|_| invalid("the message is too long"))?;
    stream.write_all(&[before, &length.to_be_bytes(), block].concat()).await
}

async fn read_block(stream: &mut (impl AsyncRead + Unpin), most: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > most {
        return Err(invalid("a message of the preface is too long"));
    }
    let mut block = vec![0; length];
    stream.read_exact(&mut block).await?;
    Ok(block)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_api::Code;

    fn ready<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_target_reads_back() {
        let target: ServicePort = "shop/checkout:8080".parse().unwrap();
        let mut wire = Vec::new();
        ready(ask(&mut wire, &target)).unwrap();
        assert_eq!(wire, b"\x00\x12shop/checkout:8080");
        assert_eq!(ready(asked(&mut wire.as_slice())).unwrap(), target);
    }

    #[test]
    fn a_refusal_reads_back_and_is_cut_to_the_limit() {
        let refusal = Refusal::new(Code::NotExported, "x".repeat(60_000), "export it");
        let mut wire = Vec::new();
        ready(refuse(&mut wire, &refusal)).unwrap();
        let read = ready(answer(&mut wire.as_slice())).unwrap().unwrap_err();
        assert_eq!(read.code, Code::NotExported);
        assert_eq!(read.message.len(), hawser_api::refusal::TEXT_MAX);
        assert_eq!(read.remedy, "export it");
    }

    #[test]
    fn what_is_too_long_malformed_or_cut_short_is_refused() {
        for bad in [&b"\xff\xff"[..], b"\x00\x04shop", b"\x00\x03\xff\xfe\xfd", b"\x00\x12shop", b"\x00", b""] {
            assert!(ready(asked(&mut &*bad)).is_err(), "{bad:?} was accepted");
        }
        for bad in [&b"\x02"[..], b"\x01\xff\xff", b"\x01\x00\x02\xff\xff", b"\x01\x00", b""] {
            assert!(ready(answer(&mut &*bad)).is_err(), "{bad:?} was accepted");
        }
    }
}
