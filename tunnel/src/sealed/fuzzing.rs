//! Doors for the fuzz targets (`fuzz/`): what they need of this module and nobody else may have.

use std::io;

use hawser_api::{Refusal, ServicePort};
use rustls::ConnectionTrafficSecrets;
use rustls::ExtractedSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};

use super::keys::Keys;
use super::preface;
use super::record::{ALERT, HEADER, KEY_UPDATE, PAYLOAD_MAX, RecordError, Records, TAIL};

/// The end of a session whose keys are known, in both directions the same.
pub fn known(client: bool) -> Result<Records, RecordError> {
    let secrets = ExtractedSecrets { tx: (0, known_secrets()), rx: (0, known_secrets()) };
    Records::new(secrets, Keys::Known { client, secrets: known_secrets })
}

fn known_secrets() -> ConnectionTrafficSecrets {
    ConnectionTrafficSecrets::Chacha20Poly1305 { key: AeadKey::from([7; 32]), iv: Iv::from([9; 12]) }
}

/// A record of any content type, with at most a record's payload of what is given.
pub fn sealed(records: &mut Records, kind: u8, payload: &[u8]) -> Result<Vec<u8>, RecordError> {
    let payload = payload.get(..PAYLOAD_MAX).unwrap_or(payload);
    let mut record = [&[0; HEADER][..], payload, &[0; TAIL]].concat();
    records.seal_kind(&mut record, kind)?;
    Ok(record)
}

/// A key update.
pub fn sealed_key_update(records: &mut Records) -> Result<Vec<u8>, RecordError> {
    let mut record = vec![0; KEY_UPDATE];
    records.seal_key_update(&mut record)?;
    Ok(record)
}

/// close_notify.
pub fn sealed_close(records: &mut Records) -> Result<Vec<u8>, RecordError> {
    let mut record = vec![0; ALERT];
    records.seal_close(&mut record)?;
    Ok(record)
}

/// The server's reading of a dedicated session's first bytes.
pub async fn asked(mut wire: &[u8]) -> io::Result<ServicePort> {
    preface::asked(&mut wire).await
}

/// What the client writes for it.
pub async fn ask(target: &ServicePort) -> io::Result<Vec<u8>> {
    let mut wire = Vec::new();
    preface::ask(&mut wire, target).await?;
    Ok(wire)
}

/// The client's reading of the server's answer.
pub async fn answer(mut wire: &[u8]) -> io::Result<Result<(), Refusal>> {
    preface::answer(&mut wire).await
}

/// What the server writes for a no.
pub async fn refuse(refusal: &Refusal) -> io::Result<Vec<u8>> {
    let mut wire = Vec::new();
    preface::refuse(&mut wire, refusal).await?;
    Ok(wire)
}
