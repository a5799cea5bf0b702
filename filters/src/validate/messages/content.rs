//! The messages of a request and the blocks they consist of, one after another, without a tree. A string for
//! content is what it stands for: one block of text.

use super::hosted::Hosted;
use crate::json::{Cursor, Malformed, Text};

/// How deep content may stand in the blocks of other content to be looked into. Results of tools have blocks, and in
/// these a document may have some; nothing that a provider takes goes deeper.
const DEEPEST: u32 = 4;

/// Whose message it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Role {
    /// The user's, or a program's on the user's side.
    User,
    /// The model's, the system's, nobody's.
    #[default]
    Other,
}

/// What comes next in the messages.
pub(crate) enum Step<'s, 'a> {
    /// A message begins, or its content does once more: what was said of this message so far does not count.
    Begin,
    /// A block of its content.
    Block(&'s Block<'a>),
    /// The message is over.
    End(Role),
}

/// One block of content.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Block<'a> {
    /// `type`; of a string for content there is none.
    kind: Option<Text<'a>>,
    text: Option<Text<'a>>,
    /// The provider is to cache all up to here.
    pub ephemeral: bool,
    /// What it brings that is not in the body.
    pub hosted: Hosted,
}

impl<'a> Block<'a> {
    fn is(&self, kind: &[u8]) -> bool {
        self.kind.is_some_and(|text| *text.name() == *kind)
    }

    /// What a block of text says.
    pub fn text(&self) -> Option<Text<'a>> {
        self.text
            .filter(|_| self.kind.is_none() || self.is(b"text"))
    }

    /// Whether it brings the result of a tool that the client ran.
    pub fn is_tool_result(&self) -> bool {
        self.is(b"tool_result")
    }
}

/// Reads over the `messages` at the cursor and tells what is in them. Anything but an array is passed over.
pub(crate) fn messages<'a>(
    cursor: &mut Cursor<'a>,
    tell: &mut impl FnMut(Step<'_, 'a>),
) -> Result<(), Malformed> {
    if !cursor.array()? {
        return cursor.value().map(drop);
    }
    while cursor.element()? {
        tell(Step::Begin);
        let mut role = Role::Other;
        if !cursor.object()? {
            cursor.value()?;
            tell(Step::End(role));
            continue;
        }
        while let Some(key) = cursor.key()? {
            match &*key.name() {
                b"role" => {
                    let name = cursor.value()?.text();
                    role = match name.is_some_and(|name| *name.name() == *b"user") {
                        true => Role::User,
                        false => Role::Other,
                    };
                }
                b"content" => {
                    tell(Step::Begin);
                    content(cursor, &mut |block| tell(Step::Block(block)))?;
                }
                _ => drop(cursor.value()?),
            }
        }
        tell(Step::End(role));
    }
    Ok(())
}

/// Reads over the content at the cursor, of a message or of `system`, and tells its blocks.
pub(crate) fn content<'a>(
    cursor: &mut Cursor<'a>,
    tell: &mut impl FnMut(&Block<'a>),
) -> Result<(), Malformed> {
    if !cursor.array()? {
        if let Some(text) = cursor.value()?.text() {
            let text = Some(text);
            tell(&Block {
                text,
                ..Block::default()
            });
        }
        return Ok(());
    }
    while cursor.element()? {
        tell(&block(cursor, 0)?);
    }
    Ok(())
}

fn block<'a>(cursor: &mut Cursor<'a>, depth: u32) -> Result<Block<'a>, Malformed> {
    let mut block = Block::default();
    if !cursor.object()? {
        // Some write a string where a block of text belongs.
        block.text = cursor.value()?.text();
        return Ok(block);
    }
    let mut source = None;
    while let Some(key) = cursor.key()? {
        match &*key.name() {
            b"type" => block.kind = cursor.value()?.text(),
            b"text" => block.text = cursor.value()?.text(),
            b"cache_control" => {
                let kind = super::member(cursor, b"type")?;
                block.ephemeral = kind.is_some_and(|kind| *kind.name() == *b"ephemeral");
            }
            b"source" => source = read_source(cursor, depth, &mut block.hosted)?,
            b"content" => inner(cursor, depth, &mut block.hosted)?,
            b"file_id" => block.hosted.things |= cursor.value()?.text().is_some(),
            _ => drop(cursor.value()?),
        }
    }
    if let Some(source) = source {
        match (&*source.name(), block.is(b"image")) {
            (b"base64", true) => block.hosted.inline_images += 1,
            (b"text" | b"content", _) => {}
            // A file, an address, something new; or a document in a few compressed bytes, which counts as many
            // pages, each of them an image as well.
            _ => block.hosted.things = true,
        }
    }
    Ok(block)
}

/// The type of a block's source. Other blocks have a text by that name.
fn read_source<'a>(
    cursor: &mut Cursor<'a>,
    depth: u32,
    hosted: &mut Hosted,
) -> Result<Option<Text<'a>>, Malformed> {
    let mut kind = None;
    if !cursor.object()? {
        cursor.value()?;
        return Ok(kind);
    }
    while let Some(key) = cursor.key()? {
        match &*key.name() {
            b"type" => kind = cursor.value()?.text(),
            b"content" => inner(cursor, depth, hosted)?,
            _ => drop(cursor.value()?),
        }
    }
    Ok(kind)
}

/// Content that stands within a block.
fn inner(cursor: &mut Cursor<'_>, depth: u32, hosted: &mut Hosted) -> Result<(), Malformed> {
    if depth == DEEPEST || !cursor.array()? {
        return cursor.value().map(drop);
    }
    while cursor.element()? {
        hosted.add(&block(cursor, depth + 1)?.hosted);
    }
    Ok(())
}
