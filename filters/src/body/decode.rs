//! Compressed bodies → plain ones, never longer than a limit.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};

/// Codings applied on top of one another; more than a client would ever need.
const MAX_CODINGS: usize = 4;

/// The largest window a zstd body may ask us to hold, as a power of two: the 8 MiB that RFC 9659
/// allows this content coding.
const MAX_ZSTD_WINDOW_LOG: u32 = 23;

/// Memory taken in advance for the decoded body.
const MAX_PREALLOCATION: usize = 1 << 20;

/// Why a body could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A coding we do not know, or too many of them; shortened if it is long.
    #[error("unknown content encoding {0:?}")]
    UnknownEncoding(String),
    /// The body is not what its encoding says, is cut short, or goes on after its end.
    #[error("the body does not match its content encoding")]
    Corrupt,
    /// The decoded body is longer than the limit.
    #[error("the decoded body is too large")]
    TooLarge,
}

/// Undoes the codings of a `Content-Encoding` header, which may be a list; several headers are to be
/// joined with commas. Known are identity, gzip, x-gzip, deflate (with or without the zlib wrapper)
/// and zstd. The work stops as soon as the result would exceed `limit` bytes. A body without any
/// bytes stays one, whatever its encoding.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode(body: Bytes, content_encoding: &str, limit: usize) -> Result<Bytes, DecodeError> {
    let codings = codings(content_encoding)?;
    let mut body = body;
    if !body.is_empty() {
        // The last coding was applied last, so it is the first to be undone.
        for (under, coding) in codings.iter().enumerate().rev() {
            // What is still coded may be a little longer than what it stands for.
            let bound = match under {
                0 => limit,
                _ => limit.saturating_add(limit / 64).saturating_add(4096),
            };
            body = Bytes::from(coding.undo(&body, bound)?);
        }
    }
    match body.len() <= limit {
        true => Ok(body),
        false => Err(DecodeError::TooLarge),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Deflate,
    Zstd,
}

/// The codings of a header in the order in which they were applied.
fn codings(header: &str) -> Result<Vec<Coding>, DecodeError> {
    let mut codings = Vec::new();
    let names = header.split(',').map(str::trim);
    for name in names.filter(|name| !name.is_empty()) {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("gzip") || is("x-gzip") {
            codings.push(Coding::Gzip);
        } else if is("deflate") {
            codings.push(Coding::Deflate);
        } else if is("zstd") {
            codings.push(Coding::Zstd);
        } else if !is("identity") {
            return Err(unknown(name));
        }
        if codings.len() > MAX_CODINGS {
            return Err(unknown(header));
        }
    }
    Ok(codings)
}

fn unknown(name: &str) -> DecodeError {
    DecodeError::UnknownEncoding(name.chars().take(40).collect())
}

impl Coding {
    /// The plain form of `coded`, of at most `bound` bytes.
    fn undo(self, coded: &[u8], bound: usize) -> Result<Vec<u8>, DecodeError> {
        let expected = coded.len().saturating_mul(4).min(MAX_PREALLOCATION);
        // One byte more than allowed tells the full from the overfull.
        let out = Vec::with_capacity(expected.min(bound.saturating_add(1)));
        let mut out = match self {
            Coding::Gzip => read_within(MultiGzDecoder::new(coded), out, bound)?,
            Coding::Zstd => read_within(zstd_reader(coded).map_err(corrupt)?, out, bound)?,
            Coding::Deflate => inflate(coded, out, bound)?,
        };
        // The body lives as long as its request; what it does not fill it should not keep.
        out.shrink_to_fit();
        Ok(out)
    }
}

fn corrupt(_: io::Error) -> DecodeError {
    DecodeError::Corrupt
}

fn zstd_reader(coded: &[u8]) -> io::Result<zstd::Decoder<'static, &[u8]>> {
    let mut decoder = zstd::Decoder::with_buffer(coded)?;
    decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
    Ok(decoder)
}

/// Reads to the end, but stops at the first byte beyond `bound`.
fn read_within(reader: impl Read, mut out: Vec<u8>, bound: usize) -> Result<Vec<u8>, DecodeError> {
    let stop = u64::try_from(bound).unwrap_or(u64::MAX).saturating_add(1);
    let read = reader.take(stop).read_to_end(&mut out);
    if out.len() > bound {
        return Err(DecodeError::TooLarge);
    }
    read.map_err(corrupt)?;
    Ok(out)
}

/// Undoes `deflate`, which some clients send without its wrapper. Written out because the readers of
/// flate2 take a stream that is cut short for one that has ended.
fn inflate(coded: &[u8], mut out: Vec<u8>, bound: usize) -> Result<Vec<u8>, DecodeError> {
    let mut inflater = Decompress::new(has_zlib_header(coded));
    let mut rest = coded;
    loop {
        if out.len() > bound {
            return Err(DecodeError::TooLarge);
        }
        if out.len() == out.capacity() {
            let more = out.len().max(4096);
            out.reserve_exact(more.min(bound.saturating_add(1) - out.len()));
        }
        let (before_in, before_out) = (inflater.total_in(), inflater.total_out());
        let status = inflater.decompress_vec(rest, &mut out, FlushDecompress::None);
        let consumed = inflater.total_in() - before_in;
        rest = usize::try_from(consumed)
            .ok()
            .and_then(|consumed| rest.get(consumed..))
            .ok_or(DecodeError::Corrupt)?;
        match status {
            Ok(Status::StreamEnd) if out.len() > bound => return Err(DecodeError::TooLarge),
            Ok(Status::StreamEnd) if rest.is_empty() => return Ok(out),
            Ok(Status::StreamEnd) | Err(_) => return Err(DecodeError::Corrupt),
            Ok(Status::Ok | Status::BufError) => {
                let stuck = consumed == 0 && inflater.total_out() == before_out;
                if stuck && out.len() < out.capacity() {
                    return Err(DecodeError::Corrupt);
                }
            }
        }
    }
}

/// Whether a deflate body is wrapped as RFC 1950 says. A bare one never looks so: it would have to
/// begin with a stored block whose padding is not zero.
fn has_zlib_header(coded: &[u8]) -> bool {
    match coded {
        [first, second, ..] => {
            let deflate = first & 0x0f == 8 && first >> 4 <= 7;
            deflate && u16::from_be_bytes([*first, *second]) % 31 == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use proptest::prelude::*;
    use std::io::Write;

    const LIMIT: usize = 1 << 20;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(plain: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn raw(plain: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(plain: &[u8]) -> Vec<u8> {
        zstd::encode_all(plain, 3).unwrap()
    }

    type Encode = fn(&[u8]) -> Vec<u8>;

    /// Every coding with its name.
    const CODERS: [(&str, Encode); 4] = [
        ("gzip", gzip),
        ("deflate", zlib),
        ("deflate", raw),
        ("zstd", zstd),
    ];

    fn try_decode(coded: &[u8], encoding: &str, limit: usize) -> Result<Bytes, DecodeError> {
        decode(Bytes::copy_from_slice(coded), encoding, limit)
    }

    #[test]
    fn every_name_of_every_coding() {
        let plain: &[u8] = b"{\"model\":\"gpt-5\"}";
        #[rustfmt::skip]
        let rows = [
            ("", plain.to_vec()),
            ("identity", plain.to_vec()),
            ("Identity, identity", plain.to_vec()),
            (" , ", plain.to_vec()),
            ("gzip", gzip(plain)),
            ("GZip", gzip(plain)),
            ("x-gzip", gzip(plain)),
            (" gzip ,", gzip(plain)),
            ("identity, gzip", gzip(plain)),
            ("deflate", zlib(plain)),
            ("Deflate", raw(plain)),
            ("zstd", zstd(plain)),
            ("gzip, zstd", zstd(&gzip(plain))),
            ("zstd,gzip", gzip(&zstd(plain))),
            ("deflate, x-gzip, zstd", zstd(&gzip(&zlib(plain)))),
            ("gzip, gzip, gzip, gzip", gzip(&gzip(&gzip(&gzip(plain))))),
        ];
        for (encoding, coded) in rows {
            let decoded = try_decode(&coded, encoding, LIMIT);
            assert_eq!(decoded.as_deref(), Ok(plain), "{encoding:?}");
        }
    }

    #[test]
    fn identity_is_not_copied() {
        let body = Bytes::from_static(b"abc");
        let decoded = decode(body.clone(), "identity", 3).unwrap();
        assert_eq!(decoded.as_ptr(), body.as_ptr());
    }

    #[test]
    fn codings_we_do_not_know() {
        let long = "x".repeat(1000);
        #[rustfmt::skip]
        let rows = [
            ("br", "br"),
            ("gzip, br", "br"),
            ("gzipx", "gzipx"),
            ("gzip;q=1", "gzip;q=1"),
            ("gzip zstd", "gzip zstd"),
            ("*", "*"),
            ("gzip, gzip, gzip, gzip, gzip", "gzip, gzip, gzip, gzip, gzip"),
            (&long, &long[..40]),
        ];
        for (encoding, named) in rows {
            let expected = DecodeError::UnknownEncoding(named.to_owned());
            assert_eq!(
                try_decode(b"abc", encoding, LIMIT),
                Err(expected),
                "{encoding}"
            );
        }
    }

    #[test]
    fn an_empty_body_is_an_empty_body() {
        for encoding in ["", "identity", "gzip", "deflate", "zstd", "gzip, zstd"] {
            assert_eq!(try_decode(b"", encoding, 0), Ok(Bytes::new()), "{encoding}");
        }
        // Its being coded does not change that.
        for (name, encode) in CODERS {
            assert_eq!(try_decode(&encode(b""), name, 0), Ok(Bytes::new()));
        }
    }

    #[test]
    fn a_body_of_several_members_is_one_body() {
        let rows = [
            ("gzip", [gzip(b"abc"), gzip(b"def")].concat()),
            ("zstd", [zstd(b"abc"), zstd(b"def")].concat()),
        ];
        for (name, coded) in rows {
            assert_eq!(try_decode(&coded, name, 6).as_deref(), Ok(&b"abcdef"[..]));
            assert_eq!(try_decode(&coded, name, 5), Err(DecodeError::TooLarge));
        }
    }

    #[test]
    fn a_body_cut_anywhere_is_corrupt() {
        let plain: Vec<u8> = (0..2000u32).flat_map(|i| (i * i).to_le_bytes()).collect();
        for (name, encode) in CODERS {
            let coded = encode(&plain);
            for end in 1..coded.len() {
                let decoded = try_decode(&coded[..end], name, LIMIT);
                assert_eq!(decoded, Err(DecodeError::Corrupt), "{name} {end}");
            }
        }
    }

    #[test]
    fn a_body_that_goes_on_after_its_end_is_corrupt() {
        for (name, encode) in CODERS {
            for garbage in [&b"\0"[..], b"x", b"{}", b"\x1f\x8b", &[0xff; 64]] {
                let coded = [&encode(b"{}"), garbage].concat();
                let decoded = try_decode(&coded, name, LIMIT);
                assert_eq!(decoded, Err(DecodeError::Corrupt), "{name} {garbage:?}");
            }
        }
    }

    #[test]
    fn a_body_in_another_coding_is_corrupt() {
        let rows = [
            ("gzip", b"{\"model\":\"gpt-5\"}".to_vec()),
            ("deflate", b"{\"model\":\"gpt-5\"}".to_vec()),
            ("zstd", b"{\"model\":\"gpt-5\"}".to_vec()),
            ("gzip", zstd(b"{}")),
            ("zstd", gzip(b"{}")),
            ("gzip", zlib(b"{}")),
            ("deflate", gzip(b"{}")),
        ];
        for (name, coded) in rows {
            assert_eq!(
                try_decode(&coded, name, LIMIT),
                Err(DecodeError::Corrupt),
                "{name}"
            );
        }
    }

    #[test]
    fn a_wrong_checksum_is_corrupt() {
        for (name, encode) in [CODERS[0], CODERS[1]] {
            let mut coded = encode(b"{\"model\":\"gpt-5\"}");
            // The checksum of gzip is followed by the length, that of zlib by nothing.
            let at = coded.len() - if name == "gzip" { 8 } else { 4 };
            coded[at] ^= 1;
            assert_eq!(try_decode(&coded, name, LIMIT), Err(DecodeError::Corrupt));
        }
    }

    #[test]
    fn the_limit_is_exact() {
        for (name, encode) in CODERS {
            for length in [1, 4095, 4096, 4097, 100_000] {
                let coded = encode(&vec![b'a'; length]);
                let full = try_decode(&coded, name, length).map(|b| b.len());
                assert_eq!(full, Ok(length), "{name}");
                let over = try_decode(&coded, name, length - 1);
                assert_eq!(over, Err(DecodeError::TooLarge), "{name} {length}");
            }
        }
        assert_eq!(try_decode(b"abc", "", 3).as_deref(), Ok(&b"abc"[..]));
        assert_eq!(try_decode(b"abc", "", 2), Err(DecodeError::TooLarge));
    }

    #[test]
    fn bombs_are_stopped_early() {
        // 16 MiB of nothing in a few KiB, alone and wrapped once more.
        let nothing = vec![0; 16 << 20];
        for (name, encode) in CODERS {
            let bomb = encode(&nothing);
            assert!(bomb.len() < 1 << 20);
            assert_eq!(try_decode(&bomb, name, 1000), Err(DecodeError::TooLarge));
            let nested = format!("{name}, gzip");
            assert_eq!(
                try_decode(&gzip(&bomb), &nested, 1000),
                Err(DecodeError::TooLarge)
            );
        }
    }

    #[test]
    fn a_zstd_window_beyond_the_standard_is_refused() {
        let plain: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for (window_log, fits) in [(23, true), (24, false)] {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(window_log).unwrap();
            encoder.write_all(&plain).unwrap();
            let coded = encoder.finish().unwrap();
            assert_eq!(
                try_decode(&coded, "zstd", LIMIT).is_ok(),
                fits,
                "{window_log}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            plain in proptest::collection::vec(any::<u8>(), 0..2000),
            outer in 0usize..CODERS.len(),
            inner in 0usize..CODERS.len(),
        ) {
            let (inner_name, inner) = CODERS[inner];
            let (outer_name, outer) = CODERS[outer];
            let limit = plain.len();
            let once = try_decode(&inner(&plain), inner_name, limit);
            prop_assert_eq!(once.as_deref(), Ok(&plain[..]));
            let names = format!("{inner_name}, {outer_name}");
            let twice = try_decode(&outer(&inner(&plain)), &names, limit);
            prop_assert_eq!(twice.as_deref(), Ok(&plain[..]));
        }

        #[test]
        fn the_limit_is_never_exceeded(
            byte in any::<u8>(),
            length in 0usize..50_000,
            limit in 0usize..50_000,
            coder in 0usize..CODERS.len(),
        ) {
            let (name, encode) = CODERS[coder];
            match try_decode(&encode(&vec![byte; length]), name, limit) {
                Ok(decoded) => prop_assert!(decoded.len() == length && length <= limit),
                Err(e) => {
                    prop_assert_eq!(e, DecodeError::TooLarge);
                    prop_assert!(length > limit);
                }
            }
        }

        #[test]
        fn garbage_is_survived_within_the_limit(
            coded in proptest::collection::vec(any::<u8>(), 0..300),
            limit in 0usize..1000,
            coder in 0usize..CODERS.len(),
        ) {
            if let Ok(decoded) = try_decode(&coded, CODERS[coder].0, limit) {
                prop_assert!(decoded.len() <= limit);
            }
        }
    }
}
