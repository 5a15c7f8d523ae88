//! Doors for the fuzz targets (`fuzz/`): what they need of private modules and nobody else may have.

use crate::subscribe::Table;

/// The tables in a file of the last known state, if it can be trusted.
pub fn decode_last_known(content: &[u8]) -> Option<Table> {
    crate::last_known::decode(content)
}

/// The content of that file.
pub fn encode_last_known(table: &Table) -> Vec<u8> {
    crate::last_known::encode(table)
}
