//! The sticky key of a Messages request: the session its client names, else the content that is to be cached, else all
//! it says. Use [`conversation`] before choosing an account.

use std::borrow::Cow;
use std::net::IpAddr;

use xxhash_rust::xxh3::Xxh3;

use super::StickyKey;
use crate::json::{Cursor, Value};
use crate::validate::messages::MessagesRequest;
use crate::validate::messages::content::{self, Block, Step};

/// Longest id taken for one, in bytes. Uuids and hashes are shorter; ids are kept and counted.
const LONGEST_ID: usize = 128;

/// Hex digits of the device in the older form of a user id.
const DEVICE_DIGITS: usize = 64;
/// Characters of a uuid.
const UUID_CHARS: usize = 36;

/// `metadata.user_id` as Claude Code fills it in, in either form: `user_{device}_account_{account}_session_{session}`,
/// or an object with the three.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserId<'a> {
    /// The machine.
    pub device_id: Cow<'a, str>,
    /// The account it is logged in with, if any.
    pub account_uuid: Option<Cow<'a, str>>,
    /// The conversation.
    pub session_id: Cow<'a, str>,
}

impl<'a> UserId<'a> {
    /// Reads a user id; `None` when it is in neither form.
    pub fn parse(text: &'a str) -> Option<Self> {
        let text = text.trim();
        if text.starts_with('{') {
            Self::parse_object(text)
        } else {
            Self::parse_text(text)
        }
    }

    fn parse_text(text: &'a str) -> Option<Self> {
        let (device, rest) = text.strip_prefix("user_")?.split_once("_account_")?;
        let (account, session) = rest.split_once("_session_")?;
        let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        let uuid = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        let fits = device.len() == DEVICE_DIGITS
            && hex(device)
            && (account.is_empty() || account.len() == UUID_CHARS)
            && uuid(account)
            && session.len() == UUID_CHARS
            && uuid(session);
        fits.then_some(UserId {
            device_id: device.into(),
            account_uuid: (!account.is_empty()).then_some(account.into()),
            session_id: session.into(),
        })
    }

    fn parse_object(text: &'a str) -> Option<Self> {
        let (mut device, mut account, mut session) = (None, None, None);
        let mut cursor = Cursor::new(text.as_bytes());
        if !cursor.object().ok()? {
            return None;
        }
        while let Some(key) = cursor.key().ok()? {
            let value = cursor.value().ok()?;
            match &*key.name() {
                b"device_id" => device = id(value),
                b"account_uuid" => account = id(value),
                b"session_id" => session = id(value),
                _ => {}
            }
        }
        cursor.finish().ok()?;
        Some(UserId {
            device_id: device?,
            account_uuid: account,
            session_id: session?,
        })
    }
}

/// A string that can be an id.
fn id(value: Value<'_>) -> Option<Cow<'_, str>> {
    let text = value.text()?.decode()?;
    (!text.trim().is_empty() && text.len() <= LONGEST_ID).then_some(text)
}

/// Who sends a request, as far as it tells conversations apart that have no name.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// The client's address.
    pub ip: Option<IpAddr>,
    /// Its `User-Agent`, empty without one.
    pub user_agent: &'a str,
    /// The id of its API key.
    pub api_key_id: i64,
}

/// What a request says of the conversation it belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conversation<'a> {
    /// The conversation.
    pub key: Option<StickyKey>,
    /// Its next turn has the same key: the third kind of key holds for one request only.
    pub lasts: bool,
    /// Whose it is, where the client says so.
    pub user: Option<UserId<'a>>,
}

/// The conversation of a request. The first of these that says something gives its key:
/// 1. the session in `metadata.user_id`;
/// 2. the content that is to be cached: the text of the first message that has a block so marked, else of the blocks
///    so marked in `system`;
/// 3. the sender and all text in `system` and `messages`, which holds only for the same request once more.
///
/// `None` without any text. Texts count as they are written in the body.
pub fn conversation<'a>(request: &'a MessagesRequest<'_>, sender: &Sender<'_>) -> Conversation<'a> {
    let user = request.user_id.as_deref().and_then(UserId::parse);
    let lasting = match &user {
        Some(user) => Some(StickyKey::of(user.session_id.as_bytes())),
        None => marked_message(request).or_else(|| marked_system(request)),
    };
    Conversation {
        key: lasting.or_else(|| everything(request, sender)),
        lasts: lasting.is_some(),
        user,
    }
}

/// The first message that is to be cached, if it has text.
fn marked_message(request: &MessagesRequest<'_>) -> Option<StickyKey> {
    let (mut texts, mut marked, mut key) = (Vec::new(), false, None);
    each_message(request, &mut |step| match step {
        _ if marked && key.is_some() => {}
        Step::Begin => {
            texts.clear();
            marked = false;
        }
        Step::Block(block) => {
            marked |= block.ephemeral;
            texts.extend(raw(block));
        }
        Step::End(_) if marked => {
            let mut hash = Hash::new(b"cacheable");
            texts.iter().for_each(|text| hash.add(text));
            key = Some(hash.key());
        }
        Step::End(_) => {}
    });
    key?
}

/// The blocks of `system` that are to be cached.
fn marked_system(request: &MessagesRequest<'_>) -> Option<StickyKey> {
    let mut hash = Hash::new(b"cacheable");
    each_system_block(request, &mut |block| {
        if block.ephemeral {
            raw(block).into_iter().for_each(|text| hash.add(text));
        }
    });
    hash.key()
}

fn everything(request: &MessagesRequest<'_>, sender: &Sender<'_>) -> Option<StickyKey> {
    let mut hash = Hash::new(b"digest");
    each_system_block(request, &mut |block| {
        raw(block).into_iter().for_each(|text| hash.add(text));
    });
    // The end of `system` must not pass for the beginning of `messages`.
    hash.part();
    each_message(request, &mut |step| {
        if let Step::Block(block) = step {
            raw(block).into_iter().for_each(|text| hash.add(text));
        }
    });
    let agent = normalised_user_agent(sender.user_agent);
    let ip = sender.ip.map(|ip| ip.to_string()).unwrap_or_default();
    hash.part();
    hash.state
        .update(format!("{ip}:{agent}:{}", sender.api_key_id).as_bytes());
    hash.key()
}

/// The text of a block, as it is written.
fn raw<'a>(block: &Block<'a>) -> Option<&'a [u8]> {
    block.text().map(|text| text.raw)
}

fn each_system_block(request: &MessagesRequest<'_>, tell: &mut impl FnMut(&Block<'_>)) {
    // What stands in a request that was read is well-formed.
    let _ = content::content(&mut Cursor::new(request.system), tell);
}

fn each_message<'a>(request: &MessagesRequest<'a>, tell: &mut impl FnMut(Step<'_, 'a>)) {
    let _ = content::messages(&mut Cursor::new(request.messages), tell);
}

/// The names of the products in a `User-Agent`, in lower case, sorted, each once, joined with `+`: what of it stays the
/// same when versions change. Without any product its words that do not begin with a digit.
pub fn normalised_user_agent(user_agent: &str) -> String {
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut names: Vec<String> = user_agent
        .match_indices('/')
        .filter(|(at, _)| user_agent[at + 1..].starts_with(in_name))
        .map(|(at, _)| {
            let before = &user_agent[..at];
            before[before.trim_end_matches(in_name).len()..].to_ascii_lowercase()
        })
        .filter(|name| !name.is_empty())
        .collect();
    if names.is_empty() {
        names = user_agent
            .split_ascii_whitespace()
            .filter(|word| !word.starts_with(|c: char| c.is_ascii_digit()))
            .map(str::to_ascii_lowercase)
            .collect();
    }
    names.sort_unstable();
    names.dedup();
    names.join("+")
}

/// Texts being hashed, each apart from the next.
struct Hash {
    state: Xxh3,
    /// Whether there has been any.
    any: bool,
}

impl Hash {
    /// Of its own kind, so that no text can stand for one of another kind, nor for a session.
    fn new(kind: &[u8]) -> Self {
        let mut hash = Hash {
            state: Xxh3::new(),
            any: false,
        };
        hash.state.update(kind);
        hash.part();
        hash
    }

    fn add(&mut self, text: &[u8]) {
        self.any |= !text.is_empty();
        self.state.update(text);
        self.state.update(END_OF_TEXT);
    }

    /// What comes next is something else than what came before.
    fn part(&mut self) {
        self.state.update(END_OF_PART);
    }

    fn key(&self) -> Option<StickyKey> {
        self.any.then(|| StickyKey(self.state.digest128()))
    }
}

/// Bytes that no text can contain, which is UTF-8.
const END_OF_TEXT: &[u8] = b"\xff";
const END_OF_PART: &[u8] = b"\xfe";

#[cfg(test)]
mod tests;
