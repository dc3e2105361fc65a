//! The project's rules as tests. Each rule is a function from text to complaints, and has a text that it must reject.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Code: what rustfmt keeps to. It breaks no string, so lines that hold one may be longer.
const CODE_COLUMNS: usize = 120;
/// Comments, which rustfmt leaves alone: a word may stand out.
const COMMENT_COLUMNS: usize = 128;
const FUNCTION_LINES: usize = 70;
const FILE_LINES: usize = 800;

/// The part of the tree that performs nothing: it is handed time, randomness and bytes.
const PURE: &[&str] = &["src/protocol/", "src/store/", "src/wire/", "src/quorum.rs", "src/command.rs"];
/// What it must not name. Addresses are plain data, but nothing there needs one either.
const IMPURE: &[&str] = &[
    "glommio",
    "tokio",
    "mio",
    "std::net",
    "std::fs",
    "std::thread",
    "std::time",
    "Instant",
    "SystemTime",
    "rand",
    "RandomState",
    "rustix",
    "socket2",
];
/// Put together here, so that this file does not contain them.
const UNFINISHED: &[&str] = &[concat!("to", "do!"), concat!("unimpl", "emented!"), concat!("db", "g!")];

/// Macros that [`wpaxos::diagnostics`] stands in for.
const PRINTS: &[&str] = &["println!", "eprintln!", "print!", "eprint!"];

/// Modules of the library, from the ground up. A module imports from rows below its own only.
const LAYERS: &[&[&str]] = &[
    &["topology", "tuning", "failure", "mutant", "notify", "diagnostics"],
    &["command", "quorum"],
    &["store", "linear"],
    &["wire"],
    &["protocol"],
    &["api", "config", "wal"],
    &["shard", "client"],
    &["server", "master", "sim"],
    &["local", "cmd"],
    &["lib", "main"],
];

#[test]
fn the_core_performs_nothing() {
    check(
        rust_files(&["src"]),
        |path, text| {
            if PURE.iter().any(|pure| path.starts_with(pure)) { impure(text) } else { Vec::new() }
        },
    );
    assert_eq!(impure("use std::time::Instant;").len(), 2);
    assert_eq!(impure("let socket = std::net::TcpStream::connect(a);").len(), 1);
    assert_eq!(impure("let x = rand::random();").len(), 1);
    assert_eq!(impure("/// Not an `Instant`.\nlet operand = 1; // std::fs\nlet s = \"rand\";").len(), 0);
}

#[test]
fn nothing_is_left_unfinished() {
    check(rust_files(&["src", "tools", "tests", "benches", "examples"]), |_, text| unfinished(text));
    for macro_name in UNFINISHED {
        assert_eq!(unfinished(&format!("fn f() {{ {macro_name}() }}")).len(), 1, "{macro_name}");
    }
}

/// `println!` and its like panic where nobody reads, and wait where nobody reads yet.
#[test]
fn nothing_is_printed_past_diagnostics() {
    let is_test = |path: &str| path.ends_with("tests.rs") || path.contains("/tests/");
    let files = rust_files(&["src", "tools/load/src", "tools/sim/src"]);
    check(files.into_iter().filter(|(path, _)| !is_test(path)).collect(), |_, text| prints(text));
    for name in PRINTS {
        assert_eq!(prints(&format!("fn f() {{ {name}(\"x\") }}")).len(), 1, "{name}");
    }
    assert_eq!(prints("/// Like `println!(x)`.\nwpaxos::say!(x);").len(), 0);
}

#[test]
fn lines_functions_and_files_are_short() {
    check(rust_files(&["src", "tools", "tests", "benches", "examples"]), |_, text| long_lines(text));
    check(rust_files(&["src", "tools", "tests", "benches", "examples"]), |_, text| long_functions(text));
    check(rust_files(&["src", "tools"]), |_, text| long_file(text));
    assert_eq!(long_lines(&format!("let x = {};", "1+".repeat(80))).len(), 1);
    assert_eq!(long_lines(&format!("/// {}", "word ".repeat(30))).len(), 1);
    assert_eq!(long_lines(&format!("let x = \"{}\";", "1+".repeat(80))).len(), 0);
    let function = |lines: usize| format!("    fn f() {{\n{}    }}\n    fn g() {{}}\n", "        g();\n".repeat(lines));
    assert_eq!(long_functions(&function(FUNCTION_LINES - 2)).len(), 0);
    assert_eq!(long_functions(&function(FUNCTION_LINES - 1)).len(), 1);
    assert_eq!(long_file(&"\n".repeat(FILE_LINES)).len(), 0);
    assert_eq!(long_file(&"\n".repeat(FILE_LINES + 1)).len(), 1);
}

#[test]
fn imports_go_down_only() {
    check(rust_files(&["src"]), |path, text| upward_imports(&module_of(path), text));
    assert_eq!(upward_imports("store", "use crate::protocol::Slot;").len(), 1);
    assert_eq!(upward_imports("shard", "use crate::{\n    api::native::{self, X},\n    client::Client,\n};").len(), 1);
    assert_eq!(upward_imports("quorum", "use crate::command::Op;").len(), 1, "they are in one row");
    assert_eq!(upward_imports("novelty", "use crate::command::Op;").len(), 1, "it is in no row");
    assert_eq!(upward_imports("store", "/// [`crate::protocol`]\nuse crate::command::Op;").len(), 0);
}

#[test]
fn every_file_is_part_of_a_crate() {
    for root in ["src", "tools/load/src", "tools/sim/src"] {
        let dead = dead_files(&rust_files(&[root]));
        assert!(dead.is_empty(), "no `mod` leads to {dead:?}");
    }
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let tree = [file("src/lib.rs", "mod a;\n// mod c;"), file("src/a.rs", "mod b;"), file("src/a/b.rs", "")];
    assert!(dead_files(&tree).is_empty());
    let dead = [file("src/c.rs", ""), file("src/a/mod.rs", ""), file("src/d/mod.rs", "mod a;"), file("src/b.rs", "")];
    assert_eq!(dead_files(&[&tree[..], &dead[..]].concat()), ["src/c.rs", "src/d/mod.rs", "src/b.rs"]);
    assert!(declares_mod("pub(crate) mod tests;", "tests") && !declares_mod("// mod tests;", "tests"));
    assert_eq!(declaration_of("src/store/mod.rs").0, "store");
    let (name, parents) = declaration_of("src/store/recent.rs");
    assert_eq!(
        (name.as_str(), &parents[..2]),
        ("recent", &["src/store/mod.rs".to_owned(), "src/store.rs".to_owned()][..])
    );
}

#[test]
fn links_in_the_documentation_resolve() {
    let documents = files_below(Path::new(ROOT), "md");
    assert!(documents.len() > 3, "only {} documents were found", documents.len());
    check(documents, |path, text| dead_links(Path::new(path).parent().unwrap_or(Path::new("")), text));
    assert_eq!(dead_links(Path::new("docs"), "[a](no-such-file.md)").len(), 1);
    assert_eq!(dead_links(Path::new(""), "[a](https://example.org) [b](#here) [c](Cargo.toml#x) `[d](e)`").len(), 0);
}

#[test]
fn documents_that_the_code_names_exist() {
    check(rust_files(&["src", "tools", "tests", "benches", "examples"]), |_, text| dead_mentions(text));
    assert_eq!(dead_mentions(&format!("//! See `{}/no-such-file.md`.", "docs")).len(), 1);
    assert_eq!(dead_mentions("//! See `docs/protocol.md`.").len(), 0);
}

#[test]
fn every_dependency_is_used() {
    for package in ["", "tools/load/", "tools/sim/"] {
        let manifest = fs::read_to_string(Path::new(ROOT).join(package).join("Cargo.toml")).unwrap();
        let code: String = ["src", "tests", "benches"]
            .map(|directory| rust_files(&[&format!("{package}{directory}")]))
            .iter()
            .flatten()
            .map(|(_, text)| text.as_str())
            .collect();
        let unused = unused_dependencies(&manifest, &code);
        assert!(unused.is_empty(), "{package}Cargo.toml: {unused:?} are not used");
    }
    let manifest = "[package]\nname = \"a\"\n[dependencies]\nb-c = \"1\"\nd.workspace = true\n[lints]\ne = 1\n";
    assert_eq!(unused_dependencies(manifest, "use b_c::X;"), ["d"]);
}

// ---- the rules -----------------------------------------------------------------------------------------------------

fn impure(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, line) in code_lines(text) {
        let named = IMPURE.iter().filter(|name| names(&line, name));
        wrong.extend(named.map(|name| format!("{number}: {name} has no place in the core")));
    }
    wrong
}

fn unfinished(text: &str) -> Vec<String> {
    let lines = code_lines(text).into_iter();
    let left = lines.filter(|(_, line)| UNFINISHED.iter().any(|name| line.contains(name)));
    left.map(|(number, line)| format!("{number}: {}", line.trim())).collect()
}

fn prints(text: &str) -> Vec<String> {
    let is_in = |line: &str, name: &str| {
        let before = |at: usize| line[..at].chars().next_back();
        line.match_indices(name).any(|(at, _)| before(at).is_none_or(|char| !char.is_alphanumeric() && char != '_'))
    };
    let lines = code_lines(text).into_iter().filter(|(_, line)| PRINTS.iter().any(|name| is_in(line, name)));
    lines.map(|(number, line)| format!("{number}: {}", line.trim())).collect()
}

fn long_lines(text: &str) -> Vec<String> {
    let too_long = |line: &str| {
        let columns = line.chars().count();
        match line.trim_start() {
            comment if comment.starts_with("//") => columns > COMMENT_COLUMNS,
            code => columns > CODE_COLUMNS && !code.contains('"') && !in_string(code),
        }
    };
    let lines = text.lines().zip(1..).filter(|(line, _)| too_long(line));
    lines.map(|(line, number)| format!("{number}: {} columns", line.chars().count())).collect()
}

/// A line of a string that goes on from the line before.
fn in_string(line: &str) -> bool {
    line.ends_with('\\')
}

/// Functions end, as rustfmt writes them, at the first brace that stands where they began.
fn long_functions(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut wrong = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let body = line.trim_start();
        let qualifiers = ["pub ", "pub(crate) ", "pub(super) ", "const ", "async "];
        let bare = qualifiers.iter().fold(body, |rest, word| rest.strip_prefix(word).unwrap_or(rest));
        if !bare.starts_with("fn ") || body.ends_with(['}', ';']) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - body.len()]);
        let length = lines[start..].iter().position(|line| *line == end).map_or(0, |length| length + 1);
        if length > FUNCTION_LINES {
            wrong.push(format!("{}: {length} lines in {bare}", start + 1));
        }
    }
    wrong
}

fn long_file(text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines > FILE_LINES { vec![format!("{lines} lines, more than {FILE_LINES}")] } else { Vec::new() }
}

fn upward_imports(module: &str, text: &str) -> Vec<String> {
    let row = |module: &str| LAYERS.iter().position(|row| row.contains(&module));
    let Some(own) = row(module) else { return vec![format!("module {module} has no place in LAYERS")] };
    let imports = imports(text).into_iter().filter(|import| import != module);
    let upward = imports.filter(|import| row(import).is_some_and(|row| row >= own));
    upward.map(|import| format!("{module} must not import {import}")).collect()
}

/// The modules of this crate that a file names.
fn imports(text: &str) -> BTreeSet<String> {
    let code: Vec<String> = code_lines(text).into_iter().map(|(_, line)| line).collect();
    let code = code.join("\n");
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(first_word(rest));
            continue;
        };
        let (mut depth, mut at_start) = (1, true);
        for (place, letter) in group.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => at_start = true,
                _ if at_start && !letter.is_whitespace() => {
                    at_start = false;
                    found.insert(first_word(&group[place..]));
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

fn dead_links(directory: &Path, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut fenced = false;
    for (line, number) in text.lines().zip(1..) {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        // What stands between backticks is every other piece.
        let prose: String = line.split('`').step_by(2).collect();
        for piece in prose.split("](").skip(1) {
            let target = piece.split([')', '#', ' ']).next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            if !elsewhere && !Path::new(ROOT).join(directory).join(target).exists() {
                wrong.push(format!("{number}: {target} does not exist"));
            }
        }
    }
    wrong
}

/// Paths below `docs/` that a comment or a message names.
fn dead_mentions(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        for (at, _) in line.match_indices(concat!("`", "docs/")) {
            let path = line[at + 1..].split('`').next().unwrap_or_default();
            if !Path::new(ROOT).join(path).exists() {
                wrong.push(format!("{number}: {path} does not exist"));
            }
        }
    }
    wrong
}

fn unused_dependencies(manifest: &str, code: &str) -> Vec<String> {
    let mut section = "";
    let mut unused = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if matches!(section, "[dependencies]" | "[dev-dependencies]") && !line.starts_with('#') {
            let name = line.split(['=', '.']).next().unwrap_or_default().trim();
            if !name.is_empty() && !names(code, &name.replace('-', "_")) {
                unused.push(name.to_owned());
            }
        }
    }
    unused
}

fn dead_files(files: &[(String, String)]) -> Vec<String> {
    let declared = |path: &str| {
        let (place, parents) = declaration_of(path);
        let declares = |parent: &str| files.iter().any(|(path, text)| path == parent && declares_mod(text, &place));
        place.is_empty() || parents.iter().any(|parent| declares(parent))
    };
    files.iter().map(|(path, _)| path).filter(|path| !declared(path)).cloned().collect()
}

/// What a file is called in a `mod`, and which files may hold that.
fn declaration_of(path: &str) -> (String, Vec<String>) {
    let path = path.strip_suffix("/mod.rs").or_else(|| path.strip_suffix(".rs")).unwrap_or(path);
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    if matches!(name, "lib" | "main") || directory.is_empty() {
        return (String::new(), Vec::new());
    }
    let [module, file] = [format!("{directory}/mod.rs"), format!("{directory}.rs")];
    (name.to_owned(), vec![module, file, format!("{directory}/lib.rs"), format!("{directory}/main.rs")])
}

fn declares_mod(text: &str, name: &str) -> bool {
    code_lines(text).iter().any(|(_, line)| {
        let declared = line.trim().strip_suffix(';').and_then(|line| line.rsplit_once("mod ").map(|(_, name)| name));
        declared == Some(name)
    })
}

// ---- helpers -------------------------------------------------------------------------------------------------------

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn check(files: Vec<(String, String)>, rule: impl Fn(&str, &str) -> Vec<String>) {
    assert!(!files.is_empty(), "no file was found");
    let complain = |(path, text): &(String, String)| -> Vec<String> {
        rule(path, text).into_iter().map(|problem| format!("{path}:{problem}")).collect()
    };
    let wrong: Vec<String> = files.iter().flat_map(complain).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

fn rust_files(directories: &[&str]) -> Vec<(String, String)> {
    directories.iter().flat_map(|directory| files_below(&Path::new(ROOT).join(directory), "rs")).collect()
}

/// Path from the root, and text, of all files with this extension, in order of their paths.
fn files_below(directory: &Path, extension: &str) -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files.extend(files_below(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            let from_root = path.strip_prefix(ROOT).expect("below the root").to_string_lossy().into_owned();
            files.push((from_root, fs::read_to_string(&path).unwrap()));
        }
    }
    files
}

fn module_of(path: &str) -> String {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs");
    path.split('/').next().unwrap_or_default().to_owned()
}

/// Lines without comments and without what stands between quotation marks, with their numbers.
fn code_lines(text: &str) -> Vec<(usize, String)> {
    let bare = |line: &str| line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
    let code = |line: &str| bare(line).split("//").next().unwrap_or_default().to_owned();
    text.lines().zip(1..).map(|(line, number)| (number, code(line))).collect()
}

/// Whether a name stands in the text as a word of its own.
fn names(text: &str, name: &str) -> bool {
    let of_a_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    text.match_indices(name).any(|(at, _)| {
        let after = &text[at + name.len()..];
        !text[..at].ends_with(of_a_word) && !after.starts_with(of_a_word)
    })
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}
