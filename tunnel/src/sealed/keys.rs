//! Where the record layer's next keys come from: rustls's key schedule, without its record layer.

use rustls::ConnectionTrafficSecrets;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;

use super::record::RecordError;

type Next = Result<(u64, ConnectionTrafficSecrets), RecordError>;

/// One end's key schedule.
pub(crate) enum Keys {
    /// We dialled.
    Client(Box<KernelConnection<ClientConnectionData>>),
    /// We accepted.
    Server(Box<KernelConnection<ServerConnectionData>>),
    /// Keys that a fuzzer knows: the same ones for ever.
    #[cfg(feature = "fuzzing")]
    Known {
        /// Which end.
        client: bool,
        /// Gives them.
        secrets: fn() -> ConnectionTrafficSecrets,
    },
}

impl Keys {
    /// Only servers send tickets, so only clients may get them.
    pub(crate) fn is_client(&self) -> bool {
        match self {
            Self::Client(_) => true,
            Self::Server(_) => false,
            #[cfg(feature = "fuzzing")]
            Self::Known { client, .. } => *client,
        }
    }

    /// The next keys for sending (RFC 8446 section 7.2).
    pub(crate) fn next_tx(&mut self) -> Next {
        match self {
            Self::Client(connection) => connection.update_tx_secret(),
            Self::Server(connection) => connection.update_tx_secret(),
            #[cfg(feature = "fuzzing")]
            Self::Known { secrets, .. } => Ok((0, secrets())),
        }
        .map_err(|_| RecordError::Exhausted)
    }

    /// The next keys for receiving.
    pub(crate) fn next_rx(&mut self) -> Next {
        match self {
            Self::Client(connection) => connection.update_rx_secret(),
            Self::Server(connection) => connection.update_rx_secret(),
            #[cfg(feature = "fuzzing")]
            Self::Known { secrets, .. } => Ok((0, secrets())),
        }
        .map_err(|_| RecordError::Exhausted)
    }
}
