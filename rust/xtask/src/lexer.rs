//! Just enough of a lexer to tell code from what only looks like code.
//!
//! Both functions return the text with comments, strings and character literals overwritten by
//! spaces. Lines and columns stay where they were, so a rule can search the result for a word
//! and report the line number of the original.

/// Blanks comments and literals of a Rust file.
pub fn blank_rust(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = rust_blank_end(bytes, at);
        if end > at {
            wipe(&mut out, at, end);
            at = end;
        } else {
            at += 1;
        }
    }
    into_text(out)
}

/// Where the comment or literal that starts at `at` ends; `at` itself if none starts here.
fn rust_blank_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let word_before = at > 0 && is_word(bytes[at - 1]);
    if rest.starts_with(b"//") {
        return find(bytes, at, b"\n");
    }
    if rest.starts_with(b"/*") {
        return block_comment_end(bytes, at);
    }
    match rest[0] {
        b'"' => quoted_end(bytes, at + 1, b'"'),
        b'r' if !word_before => raw_string_end(bytes, at, at + 1),
        b'b' | b'c' if !word_before && rest.get(1) == Some(&b'r') => {
            raw_string_end(bytes, at, at + 2)
        }
        b'\'' => char_end(bytes, at),
        _ => at,
    }
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn raw_string_end(bytes: &[u8], start: usize, after_prefix: usize) -> usize {
    let hashes = bytes[after_prefix..]
        .iter()
        .take_while(|b| **b == b'#')
        .count();
    if bytes.get(after_prefix + hashes) != Some(&b'"') {
        return start;
    }
    let mut closing = vec![b'"'];
    closing.extend(std::iter::repeat_n(b'#', hashes));
    let body = after_prefix + hashes + 1;
    (find(bytes, body, &closing) + closing.len()).min(bytes.len())
}

/// A character literal ends here; a lifetime does not, and blanks nothing.
fn char_end(bytes: &[u8], start: usize) -> usize {
    match bytes.get(start + 1) {
        Some(b'\\') => quoted_end(bytes, start + 1, b'\''),
        Some(_) => {
            // One character of any length in UTF-8, then the closing quote.
            let close = (start + 2..(start + 6).min(bytes.len())).find(|at| bytes[*at] == b'\'');
            match close {
                Some(at) if at == start + 2 || bytes[start + 1] >= 0x80 => at + 1,
                _ => start,
            }
        }
        None => start,
    }
}

/// Blanks comments and strings of a Python file.
pub fn blank_python(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = match rest[0] {
            b'#' => find(bytes, at, b"\n"),
            quote @ (b'"' | b'\'') => {
                let triple = [quote; 3];
                if rest.starts_with(&triple) {
                    (find_unescaped(bytes, at + 3, &triple) + 3).min(bytes.len())
                } else {
                    quoted_end(bytes, at + 1, quote)
                }
            }
            _ => at,
        };
        wipe(&mut out, at, end);
        at = end.max(at + 1);
    }
    into_text(out)
}

fn find_unescaped(bytes: &[u8], from: usize, what: &[u8]) -> usize {
    let mut at = from;
    while at < bytes.len() && !bytes[at..].starts_with(what) {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at.min(bytes.len())
}

fn quoted_end(bytes: &[u8], from: usize, quote: u8) -> usize {
    (find_unescaped(bytes, from, &[quote]) + 1).min(bytes.len())
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> usize {
    (from..bytes.len())
        .find(|at| bytes[*at..].starts_with(what))
        .unwrap_or(bytes.len())
}

fn wipe(out: &mut [u8], from: usize, to: usize) {
    for byte in &mut out[from..to] {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Is this byte part of an identifier?
pub fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Every place where `word` stands as a whole identifier (or path of identifiers).
pub fn words(code: &str, word: &str) -> Vec<usize> {
    let bytes = code.as_bytes();
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(|at| *at == 0 || !is_word(bytes[at - 1]))
        .filter(|at| {
            bytes
                .get(at + word.len())
                .is_none_or(|next| !is_word(*next))
        })
        .collect()
}

/// The offset just after the brace that closes the one at `open`.
pub fn brace_end(code: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_comments_and_literals_are_blanked_and_code_stays() {
        // Belief: only code survives, on the line and column where it stood.
        let text = "let a = \"unsafe\"; // unsafe\n/* unsafe /* nested */ still */ let b = 'u';\n\
                    let c = r#\"unsafe \" here\"#; fn f<'a>(x: &'a str) -> char { '\\'' }";
        let code = blank_rust(text);
        assert_eq!(code.len(), text.len());
        assert!(!code.contains("unsafe"), "{code}");
        assert!(code.contains("fn f<'a>(x: &'a str) -> char {"), "{code}");
        assert_eq!(code.lines().count(), text.lines().count());
    }

    #[test]
    fn python_comments_and_strings_are_blanked_and_code_stays() {
        // Belief: docstrings, escapes and both kinds of quote are seen for what they are.
        let text = "x = 'it\\'s eval('  # eval(\n\"\"\"eval(\n'\"' \"\"\"\ny = f(1)\n";
        let code = blank_python(text);
        assert!(!code.contains("eval"), "{code}");
        assert!(code.contains("y = f(1)"), "{code}");
        assert_eq!(code.lines().count(), text.lines().count());
    }

    #[test]
    fn a_word_is_found_only_whole() {
        // Belief: neither `reattach` nor `attached` counts as `attach`.
        assert_eq!(
            words("reattach attached attach(attach)", "attach"),
            vec![18, 25]
        );
    }

    #[test]
    fn braces_are_matched() {
        // Belief: the end is after the matching brace, not after the first one.
        assert_eq!(brace_end("{ { } } x", 0), 7);
    }
}
