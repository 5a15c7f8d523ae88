//! The server at the end of a chain: echoes, or swallows an upload and answers with its length.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::Result;

/// First byte of a connection that uploads; everything else is echoed.
pub(crate) const UPLOAD: u8 = b'U';

/// An upload comes in blocks of this size. The end is told in band, since not every peer passes a half-close on.
pub(crate) const BLOCK: usize = 256 * 1024;

/// First byte of an upload's last block.
pub(crate) const LAST: u8 = b'L';

/// Serves until it is ended; a thread a connection, which is cheap enough for what is asked of it.
pub(crate) fn run(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen)?;
    for socket in listener.incoming() {
        let Ok(socket) = socket else { continue };
        let small = std::thread::Builder::new().stack_size(64 * 1024);
        let _ = small.spawn(move || serve(socket));
    }
    Ok(())
}

fn serve(mut socket: TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut first = [0];
    socket.read_exact(&mut first)?;
    if first != [UPLOAD] {
        return echo(socket, first);
    }
    let mut block = vec![0; BLOCK];
    let mut total = 0_u64;
    loop {
        socket.read_exact(&mut block)?;
        total += block.len() as u64;
        if block.first() == Some(&LAST) {
            return socket.write_all(&total.to_be_bytes());
        }
    }
}

fn echo(mut socket: TcpStream, first: [u8; 1]) -> std::io::Result<()> {
    socket.write_all(&first)?;
    let mut buffer = [0; 4096];
    loop {
        let read = socket.read(&mut buffer)?;
        let Some(got) = buffer.get(..read).filter(|got| !got.is_empty()) else { return Ok(()) };
        socket.write_all(got)?;
    }
}
