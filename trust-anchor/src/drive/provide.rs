//! What comes from where the root's key lives: a new root's certificate, or the new intermediate's.

use std::time::SystemTime;

use hawser_tunnel::verify::Anchor;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Driver, failed};
use crate::authority::Authority;
use crate::hierarchy::{describe, names};
use crate::rotate::course::{Course, Der, NEXT, authority_id};
use crate::rotate::{Level, Refused, State};
use crate::signer::Intermediate;

/// Largest certificate that is looked at, PEM.
const PROVIDED_MAX: usize = 64 * 1024;

fn refused(message: impl Into<String>) -> Refused {
    Refused::new(message, "hand over root/next/root.crt, or the intermediate.crt that was signed for this request")
}

impl Driver {
    /// Takes a certificate for the rotation that runs.
    pub(crate) fn provide(&mut self, bytes: &[u8], authority: &Authority, now: SystemTime) -> Result<(), Refused> {
        let der = read(bytes)?;
        let Some(rotation) = self.course.running() else {
            return Err(Refused::new("no rotation waits for a certificate", "begin one: hawser trust rotate root"));
        };
        let (level, state) = (rotation.level, rotation.state);
        let own_key = self.is_for_our_request(&der, authority);
        match level {
            Level::Root if !own_key => self.provide_root(der, state, authority, now)?,
            _ if !own_key => return Err(refused("the certificate is not for the key of our request")),
            _ => self.provide_intermediate(&der, state, authority, now)?,
        }
        self.look(authority, now);
        Ok(())
    }

    fn is_for_our_request(&self, der: &CertificateDer<'_>, authority: &Authority) -> bool {
        let key = crate::hierarchy::read_key(&authority.store.path(NEXT).join(names::INTERMEDIATE_KEY));
        let ours = key.ok().map(|key| rcgen::PublicKeyData::subject_public_key_info(&key));
        let theirs = X509Certificate::from_der(der).ok().map(|(_, cert)| cert.public_key().raw.to_vec());
        ours.is_some() && ours == theirs
    }

    fn provide_root(
        &mut self,
        der: CertificateDer<'static>,
        state: State,
        authority: &Authority,
        now: SystemTime,
    ) -> Result<(), Refused> {
        if self.course.new_root.as_ref().is_some_and(|new| new.0 == der) {
            return Ok(());
        }
        if state >= State::Published {
            return Err(Refused::new(
                "another new root is published already",
                "take it back: hawser trust rotate --rollback",
            ));
        }
        let anchor = Anchor::read(&der, authority.credentials.own_domain());
        let anchor = anchor.map_err(|e| refused(format!("no root for this cluster: {e}")))?;
        if anchor.not_after() <= now {
            return Err(refused("the new root is over"));
        }
        self.compare(&der)?;
        let id = anchor.authority().to_string();
        authority.audit("rotation", "new root", &id, now)?;
        self.keep(Course { new_root: Some(Der(der)), ..self.course.clone() }, authority)
    }

    /// With the roots that are there: two authorities of one subject or key confuse every verifier, and a root that ends
    /// first would not be one to go on with.
    fn compare(&self, der: &CertificateDer<'_>) -> Result<(), Refused> {
        let (new_id, new) = (authority_id(der), describe(der).ok_or_else(|| refused("not a certificate"))?);
        for root in &self.roots {
            let Some(old) = describe(root) else { continue };
            if authority_id(root) == new_id {
                return Err(refused("the new root has the key of one that is published"));
            }
            if old.subject == new.subject {
                return Err(refused("the new root has the subject of one that is published"));
            }
        }
        let old = self.course.old_root.as_ref().and_then(|old| describe(&old.0));
        if old.is_some_and(|old| new.until < old.until) {
            return Err(refused("the new root ends before the old one does"));
        }
        Ok(())
    }

    fn provide_intermediate(
        &mut self,
        der: &CertificateDer<'static>,
        state: State,
        authority: &Authority,
        now: SystemTime,
    ) -> Result<(), Refused> {
        if state >= State::Active {
            return Err(Refused::new("the new intermediate signs already", "nothing is waited for"));
        }
        authority.audit(
            "rotation",
            "new intermediate",
            &authority_id(der).map(|id| id.to_string()).unwrap_or_default(),
            now,
        )?;
        let name = format!("{NEXT}/{}", names::INTERMEDIATE_CERTIFICATE);
        let pem = crate::hierarchy::certificate_pem(der);
        let kept = &authority.store.kept;
        kept.write_plain(&name, pem.as_bytes()).map_err(|e| failed("the certificate cannot be written", &e))?;
        self.next.clear();
        let anchors = match (self.course.level(), &self.course.new_root) {
            (Some(Level::Root), Some(new)) => vec![new.0.clone()],
            (Some(Level::Root), None) => Vec::new(),
            _ => self.roots.clone(),
        };
        let loaded = Intermediate::load_under(&authority.store.path(NEXT), &authority.credentials, &anchors);
        if let Err(error) = loaded {
            let _ = kept.remove(&name);
            return Err(refused(format!("the new intermediate does not hold: {error:#}")));
        }
        Ok(())
    }
}

fn read(bytes: &[u8]) -> Result<CertificateDer<'static>, Refused> {
    if bytes.len() > PROVIDED_MAX {
        return Err(refused(format!("{} bytes, more than {PROVIDED_MAX}", bytes.len())));
    }
    let der = match CertificateDer::from_pem_slice(bytes) {
        Ok(der) => der,
        Err(_) => CertificateDer::from(bytes.to_vec()),
    };
    match X509Certificate::from_der(&der) {
        Ok(([], _)) => Ok(der),
        _ => Err(refused("neither a certificate in PEM nor in DER")),
    }
}
