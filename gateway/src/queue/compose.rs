//! What a script is made of: what it needs of the shared part, and its own text. Each call of a script makes every function
//! that stands in it anew, so what it does not need is left out.

use std::collections::{BTreeMap, BTreeSet};

/// `script` with those statements of `common` before it that it needs, directly or through others. A statement of `common`
/// begins with `local` at the beginning of a line, and goes on to the next one.
pub fn compose(flags: &str, common: &str, script: &str) -> String {
    let statements = statements(common);
    let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, statement) in statements.iter().enumerate() {
        if let Some(name) = name_of(statement) {
            by_name.entry(name).or_default().push(index);
        }
    }
    let mut needed = BTreeSet::new();
    let own = without_comments(script);
    let mut unread: Vec<&str> = vec![&own];
    while let Some(text) = unread.pop() {
        for word in words(text) {
            for index in by_name.get(word).into_iter().flatten() {
                if needed.insert(*index)
                    && let Some(statement) = statements.get(*index)
                {
                    unread.push(statement);
                }
            }
        }
    }
    let mut text = format!("#!lua {flags}\n");
    for (index, statement) in statements.iter().enumerate() {
        if needed.contains(&index) {
            text.push_str(statement);
        }
    }
    text.push_str(script);
    text
}

/// Without comments and blank lines.
fn statements(common: &str) -> Vec<String> {
    let mut statements: Vec<String> = Vec::new();
    for line in without_comments(common).split_inclusive('\n') {
        match statements.last_mut() {
            Some(last) if !line.starts_with("local ") => last.push_str(line),
            _ => statements.push(line.to_owned()),
        }
    }
    statements
}

fn without_comments(text: &str) -> String {
    let is_code = |line: &&str| {
        let line = line.trim_start();
        !line.is_empty() && !line.starts_with("--")
    };
    text.lines()
        .filter(is_code)
        .map(|line| line.to_owned() + "\n")
        .collect()
}

fn name_of(statement: &str) -> Option<&str> {
    let rest = statement.strip_prefix("local ")?;
    words(rest.strip_prefix("function ").unwrap_or(rest)).next()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: &str = "-- A comment that names unused.\nlocal P = KEYS[1]\n\nlocal function inner()\n  -- unused\n  return P\nend\n\n\
                          local function outer() return inner() end\nlocal function unused()\n  return 1\nend\n";

    #[test]
    fn what_is_needed_comes_along_in_its_order_and_nothing_else() {
        let text = compose("flags=", COMMON, "-- unused\nreturn outer()\n");
        assert_eq!(
            text,
            "#!lua flags=\nlocal P = KEYS[1]\nlocal function inner()\n  return P\nend\nlocal function outer() return inner() end\n\
             -- unused\nreturn outer()\n"
        );
        assert_eq!(
            compose("flags=", COMMON, "return 1\n"),
            "#!lua flags=\nreturn 1\n"
        );
    }

    #[test]
    fn a_name_that_is_defined_twice_comes_whole() {
        let common = "local real = redis\nlocal redis = real\nlocal P = 1\n";
        let text = compose("flags=", common, "return redis.call('TIME')\n");
        assert_eq!(
            text,
            "#!lua flags=\nlocal real = redis\nlocal redis = real\nreturn redis.call('TIME')\n"
        );
    }
}
