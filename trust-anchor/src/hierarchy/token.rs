//! A root's key that never leaves its token: a smart card, an HSM, or SoftHSM, by way of PKCS#11.
//!
//! Beside `root.crt` lies `root.token` instead of `root.key`: which module and token, and the label of the key. It holds
//! no secret; the PIN is in a file that it names.

use std::fs;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use parking_lot::Mutex;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};
use serde::{Deserialize, Serialize};

use super::{HierarchyError, content, names, read, read_key, write};

/// The curve P-256 as PKCS#11 names it: its object identifier in DER (PKCS#11 section 6.3.3).
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// An uncompressed point of P-256: a tag and two coordinates.
const POINT: usize = 65;

/// Where a key on a token is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Token {
    /// The PKCS#11 library, such as /usr/lib/softhsm/libsofthsm2.so.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// File with the user's PIN.
    pub pin_file: PathBuf,
    /// The key's label; made from random where a key is made.
    #[serde(default)]
    pub label: String,
}

/// A signing key: in a file, or on a token.
pub(super) enum RootKey {
    /// PKCS#8.
    File(KeyPair),
    /// PKCS#11.
    Token(TokenKey),
}

/// A key that its token signs with.
pub(super) struct TokenKey {
    /// One at a time: a session does one thing at once.
    session: Mutex<Session>,
    private: ObjectHandle,
    point: Vec<u8>,
}

/// Whether a root's key is at hand in this directory, in a file or on a token.
pub fn has_key(directory: &Path) -> bool {
    [names::ROOT_KEY, names::ROOT_TOKEN].iter().any(|name| directory.join(name).exists())
}

impl RootKey {
    pub(super) fn open(directory: &Path) -> Result<Self, HierarchyError> {
        let path = directory.join(names::ROOT_TOKEN);
        if !path.exists() {
            return Ok(Self::File(read_key(&directory.join(names::ROOT_KEY))?));
        }
        let token: Token = serde_json::from_slice(&read(&path)?).map_err(|e| content(&path, e))?;
        Ok(Self::Token(TokenKey::find(&token).map_err(|reason| content(&path, reason))?))
    }

    /// Makes a key on the token, and the file that says where it is.
    pub(super) fn make(directory: &Path, token: &Token) -> Result<Self, HierarchyError> {
        let path = directory.join(names::ROOT_TOKEN);
        let label = format!("hawser-root-{:016x}", rand::random::<u64>());
        let token = Token { label, ..token.clone() };
        let key = TokenKey::make(&token).map_err(|reason| content(&path, reason))?;
        let text = serde_json::to_string_pretty(&token).map_err(|e| content(&path, e))?;
        write(&path, &text)?;
        Ok(Self::Token(key))
    }
}

impl PublicKeyData for RootKey {
    fn der_bytes(&self) -> &[u8] {
        match self {
            Self::File(key) => key.der_bytes(),
            Self::Token(key) => &key.point,
        }
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self {
            Self::File(key) => PublicKeyData::algorithm(key),
            Self::Token(_) => &PKCS_ECDSA_P256_SHA256,
        }
    }
}

impl SigningKey for RootKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match self {
            Self::File(key) => key.sign(message),
            Self::Token(key) => key.sign(message).map_err(|_| rcgen::Error::RemoteKeyError),
        }
    }
}

impl TokenKey {
    fn session(token: &Token) -> Result<Session, String> {
        let say = |error: Error| error.to_string();
        let module = Pkcs11::new(&token.module).map_err(|e| format!("{}: {e}", token.module.display()))?;
        match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            // The module is one for the whole process.
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(error.to_string()),
        }
        let slots = module.get_slots_with_token().map_err(say)?;
        let is_it = |slot: &_| module.get_token_info(*slot).is_ok_and(|info| info.label().trim() == token.token);
        let slot = slots.into_iter().find(is_it).ok_or_else(|| format!("no token has the label {:?}", token.token))?;
        let pin = fs::read_to_string(&token.pin_file).map_err(|e| format!("{}: {e}", token.pin_file.display()))?;
        let session = module.open_rw_session(slot).map_err(say)?;
        match session.login(UserType::User, Some(&AuthPin::new(pin.trim().to_owned().into()))) {
            // The module is one for the whole process.
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(error) => Err(format!("the token does not take the PIN: {error}")),
        }
    }

    fn find(token: &Token) -> Result<Self, String> {
        let session = Self::session(token)?;
        let find = |class| {
            let wanted = [
                Attribute::Class(class),
                Attribute::KeyType(KeyType::EC),
                Attribute::Label(token.label.clone().into_bytes()),
            ];
            let found = session.find_objects(&wanted).map_err(|e| e.to_string())?;
            found.first().copied().ok_or_else(|| format!("the token has no key with the label {:?}", token.label))
        };
        let (private, public) = (find(ObjectClass::PRIVATE_KEY)?, find(ObjectClass::PUBLIC_KEY)?);
        Self::new(session, private, public)
    }

    fn make(token: &Token) -> Result<Self, String> {
        let session = Self::session(token)?;
        let label = token.label.clone().into_bytes();
        let public = [
            Attribute::Token(true),
            Attribute::Verify(true),
            Attribute::EcParams(P256.to_vec()),
            Attribute::Label(label.clone()),
        ];
        let private = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            // What this is for: nobody gets it out, we neither.
            Attribute::Extractable(false),
            Attribute::Sign(true),
            Attribute::Label(label),
        ];
        let made = session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private);
        let (public, private) = made.map_err(|e| format!("the token makes no key: {e}"))?;
        Self::new(session, private, public)
    }

    fn new(session: Session, private: ObjectHandle, public: ObjectHandle) -> Result<Self, String> {
        let attributes = session.get_attributes(public, &[AttributeType::EcPoint]).map_err(|e| e.to_string())?;
        let point = attributes.into_iter().find_map(|attribute| match attribute {
            Attribute::EcPoint(point) => Some(point),
            _ => None,
        });
        let point = point.ok_or("the token does not tell the public key")?;
        // In an OCTET STRING, as the standard asks for, or bare, as some tokens do it.
        let point = point.strip_prefix(&[0x04, 0x41]).filter(|bare| bare.len() == POINT).unwrap_or(&point).to_vec();
        if point.len() != POINT {
            return Err("the key on the token is not ECDSA P-256".into());
        }
        Ok(Self { session: Mutex::new(session), private, point })
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let hash = digest::digest(&digest::SHA256, message);
        let signed = self.session.lock().sign(&Mechanism::Ecdsa, self.private, hash.as_ref());
        let signed = signed.map_err(|e| e.to_string())?;
        match signed.split_at_checked(POINT / 2) {
            Some((r, s)) if s.len() == r.len() => Ok(sequence(r, s)),
            _ => Err("the token's signature has another length".into()),
        }
    }
}

/// Two numbers as X.509 wants a signature (RFC 3279 section 2.2.3); PKCS#11 has them side by side.
fn sequence(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |number: &[u8]| {
        let bare: Vec<u8> = number.iter().copied().skip_while(|byte| *byte == 0).collect();
        // The first bit is a sign.
        let sign = bare.first().is_none_or(|first| *first >= 0x80);
        let length = u8::try_from(bare.len()).unwrap_or_default() + u8::from(sign);
        let mut der = vec![0x02, length];
        der.extend(sign.then_some(0));
        der.extend(bare);
        der
    };
    let (r, s) = (integer(r), integer(s));
    let mut der = vec![0x30, u8::try_from(r.len() + s.len()).unwrap_or_default()];
    der.extend(r);
    der.extend(s);
    der
}
