//! What the installation's secret is used for: hashing client keys, sealing credentials, and
//! telling whether a database belongs to it. Each use has a key of its own, derived with HKDF.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{hkdf, hmac};

use super::StorageError;
use crate::domain::{KeyHash, Secret};

/// HKDF salt: fixed, so that the same secret gives the same keys in every process.
const SALT: &[u8] = b"tollgate.storage.v1";
/// First byte of a sealed value, so that the format can change.
const FORMAT: u8 = 1;
/// Bound into every sealed credential. Not the account's name: that may change.
const CREDENTIAL_LABEL: &[u8] = b"tollgate.credential";

/// Hashes client keys under the installation's secret. Cheap to clone.
#[derive(Clone)]
pub struct KeyHasher(hmac::Key);

impl KeyHasher {
    /// The hasher of this secret.
    pub fn new(secret: &Secret) -> KeyHasher {
        KeyHasher(derive(secret, b"client-keys", hmac::HMAC_SHA256))
    }

    /// What is stored in place of `key`.
    pub fn hash(&self, key: &str) -> KeyHash {
        let tag = hmac::sign(&self.0, key.as_bytes());
        let mut hash = [0; 32];
        hash.copy_from_slice(tag.as_ref());
        KeyHash(hash)
    }
}

impl std::fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHasher(…)")
    }
}

/// Seals credentials (ChaCha20-Poly1305, a random nonce per value).
pub(super) struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
}

impl Sealer {
    pub(super) fn new(secret: &Secret) -> Sealer {
        let key: UnboundKey = derive(secret, b"credentials", &CHACHA20_POLY1305);
        Sealer {
            key: LessSafeKey::new(key),
            random: SystemRandom::new(),
        }
    }

    /// Format byte, nonce, ciphertext and tag.
    pub(super) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, StorageError> {
        let mut nonce = [0; NONCE_LEN];
        self.random
            .fill(&mut nonce)
            .map_err(|_| StorageError::NoRandomness)?;
        let mut body = plain.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(CREDENTIAL_LABEL),
                &mut body,
            )
            .map_err(|_| StorageError::Sealed("a credential".to_owned()))?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + body.len());
        sealed.push(FORMAT);
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut body);
        Ok(sealed)
    }

    /// The plain text of a sealed value; `what` names it in the error.
    pub(super) fn unseal(&self, sealed: &[u8], what: &str) -> Result<Vec<u8>, StorageError> {
        let failed = || StorageError::Sealed(what.to_owned());
        let (nonce, body) = sealed
            .strip_prefix(&[FORMAT])
            .and_then(|rest| rest.split_at_checked(NONCE_LEN))
            .ok_or_else(failed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| failed())?;
        let mut body = body.to_vec();
        let plain = self
            .key
            .open_in_place(nonce, Aad::from(CREDENTIAL_LABEL), &mut body)
            .map_err(|_| failed())?;
        Ok(plain.to_vec())
    }
}

/// A value that only this secret gives; stored in the database to recognise it again.
pub(super) fn check_value(secret: &Secret) -> String {
    let key: hmac::Key = derive(secret, b"check", hmac::HMAC_SHA256);
    hex(hmac::sign(&key, b"tollgate.db").as_ref())
}

/// A new client key: `tg-` and 32 random bytes as lower-case hex.
pub(super) fn generate_key() -> Result<Secret, StorageError> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| StorageError::NoRandomness)?;
    Ok(Secret::new(format!("tg-{}", hex(&bytes))))
}

/// A number that nobody else has.
pub(super) fn random_number() -> Result<u64, StorageError> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| StorageError::NoRandomness)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The first characters of a key, at most eight and never more than a third of it.
pub(super) fn hint(key: &str) -> String {
    let length = key.chars().count();
    key.chars().take(8.min(length / 3)).collect()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// A key derived from the secret for one use. HKDF only fails for outputs beyond 8 KiB.
fn derive<L, K>(secret: &Secret, label: &[u8], kind: L) -> K
where
    L: hkdf::KeyType,
    K: for<'a> From<hkdf::Okm<'a, L>>,
{
    hkdf::Salt::new(hkdf::HKDF_SHA256, SALT)
        .extract(secret.expose().as_bytes())
        .expand(&[label], kind)
        .expect("32 bytes are within HKDF's limit")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_depends_on_key_and_secret() {
        let (a, b) = (Secret::new("secret-a"), Secret::new("secret-b"));
        let hash = KeyHasher::new(&a).hash("tg-1");
        assert_eq!(hash, KeyHasher::new(&a).hash("tg-1"));
        assert_ne!(hash, KeyHasher::new(&a).hash("tg-2"));
        assert_ne!(hash, KeyHasher::new(&b).hash("tg-1"));
        assert_ne!(check_value(&a), check_value(&b));
    }

    #[test]
    fn what_is_sealed_opens_only_whole_and_under_its_secret() {
        let sealer = Sealer::new(&Secret::new("secret-a"));
        for plain in [&b""[..], b"sk-test", &[7; 5000]] {
            let sealed = sealer.seal(plain).unwrap();
            assert_eq!(sealer.unseal(&sealed, "x").unwrap(), plain);
            assert_ne!(
                sealed,
                sealer.seal(plain).unwrap(),
                "a nonce was used twice"
            );
            for at in [0, 1, sealed.len() - 1] {
                let mut broken = sealed.clone();
                broken[at] ^= 1;
                assert!(sealer.unseal(&broken, "x").is_err(), "byte {at}");
            }
            assert!(sealer.unseal(&sealed[..10], "x").is_err());
            let other = Sealer::new(&Secret::new("secret-b"));
            assert!(matches!(
                other.unseal(&sealed, "accounts/x"),
                Err(StorageError::Sealed(what)) if what == "accounts/x"
            ));
        }
    }

    #[test]
    fn generated_keys_are_long_and_differ() {
        let (a, b) = (generate_key().unwrap(), generate_key().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.expose().len(), 67);
        assert!(a.expose()[3..].bytes().all(|b| b.is_ascii_hexdigit()));
    }

    #[test]
    fn a_hint_never_shows_more_than_a_third() {
        for (key, shown) in [
            ("", ""),
            ("ab", ""),
            ("abcdef", "ab"),
            ("tg-alice-0123456789abcdef", "tg-alice"),
            ("schlüssel", "sch"),
        ] {
            assert_eq!(hint(key), shown);
        }
    }
}
