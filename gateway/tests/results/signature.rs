//! AWS' signature, version 4, checked as the server's side does.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, request::Parts};
use sha2::{Digest as _, Sha256};
use url::form_urlencoded;

/// Whoever may write.
pub const KEY_ID: &str = "AKIATEST";
pub const SECRET: &str = "hush/hush+hush";
pub const REGION: &str = "eu-test-1";

/// Whether a request is what its signature says.
pub fn check(request: &Parts, body: &[u8]) -> Result<(), String> {
    let header = |name: &str| text(&request.headers, name);
    let authorization = header("authorization")?;
    let fields = authorization
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .ok_or("another algorithm")?;
    let fields: BTreeMap<&str, &str> = fields
        .split(',')
        .filter_map(|field| field.trim().split_once('='))
        .collect();
    let field = |name: &str| fields.get(name).copied().ok_or(format!("no {name}"));

    let date = header("x-amz-date")?;
    let scope = format!(
        "{}/{REGION}/s3/aws4_request",
        date.get(..8).ok_or("a short date")?
    );
    if field("Credential")? != format!("{KEY_ID}/{scope}") {
        return Err("another key, day, region or service".to_owned());
    }
    let digest = hex::encode(Sha256::digest(body));
    if header("x-amz-content-sha256")? != digest {
        return Err("another body".to_owned());
    }
    let signed = field("SignedHeaders")?;
    for name in ["host", "x-amz-content-sha256", "x-amz-date"] {
        if !signed.split(';').any(|signed| signed == name) {
            return Err(format!("{name} is not signed"));
        }
    }
    let mut headers = String::new();
    for name in signed.split(';') {
        headers += &format!("{name}:{}\n", header(name)?.trim());
    }
    let canonical = format!(
        "{}\n{}\n{}\n{headers}\n{signed}\n{digest}",
        request.method,
        request.uri.path(),
        canonical_query(request.uri.query().unwrap_or_default()),
    );
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{date}\n{scope}\n{}",
        hex::encode(Sha256::digest(canonical.as_bytes()))
    );
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in scope.split('/') {
        key = hmac(&key, part.as_bytes());
    }
    if field("Signature")? != hex::encode(hmac(&key, to_sign.as_bytes())) {
        return Err("another signature".to_owned());
    }
    Ok(())
}

fn text(headers: &HeaderMap, name: &str) -> Result<String, String> {
    let value = headers.get(name).ok_or(format!("no {name}"))?;
    Ok(value.to_str().map_err(|error| error.to_string())?.to_owned())
}

fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<String> = form_urlencoded::parse(query.as_bytes())
        .map(|(name, value)| format!("{}={}", encoded(&name), encoded(&value)))
        .collect();
    pairs.sort_unstable();
    pairs.join("&")
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// HMAC-SHA256 (RFC 2104).
pub fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new()
        .chain_update(pad(0x36))
        .chain_update(message)
        .finalize();
    Sha256::new()
        .chain_update(pad(0x5c))
        .chain_update(inner)
        .finalize()
        .to_vec()
}

#[test]
fn the_hash_is_that_of_the_standards_example() {
    // RFC 4231, test case 2.
    let found = hex::encode(hmac(b"Jefe", b"what do ya want for nothing?"));
    assert_eq!(
        found,
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    );
}
