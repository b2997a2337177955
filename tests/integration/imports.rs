//! Which module imports which: `docs/ARCHITECTURE.md` has the rules as two tables, and the code must follow them
//! exactly. Also the length of lines, of which rustfmt leaves comments and strings alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// From a name to the names that belong to it.
type Table = BTreeMap<String, BTreeSet<String>>;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below a folder.
fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => rust_files(&path, files),
            false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            false => {}
        }
    }
}

/// The code of a file that is compiled into the server: without comments, and without the tests at its end.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text =
        text.split("\n#[cfg(test)]\n#[allow").next().unwrap().split("\n#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The names that follow a prefix such as `crate::`, also those in braces: `crate::{a::B, c}`.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let first_word = |text: &str| text.chars().take_while(|c| is_word(*c)).collect::<String>();
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        // `$crate::`, or the end of a longer word.
        if code[..at].ends_with(|c: char| is_word(c) || c == '$') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(first_word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (index, c) in group.char_indices() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && is_word(c) => {
                    names.insert(first_word(&group[index..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    names
}

/// The rows of the table under a heading: the first cell's name, and the names in the second cell.
fn documented(heading: &str) -> Table {
    let text = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let section = text.split(heading).nth(1).unwrap_or_else(|| panic!("docs/ARCHITECTURE.md has no `{heading}`"));
    let section = section.split("\n#").next().unwrap();
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.map(|(name, cell)| (name.to_owned(), words(cell))).collect()
}

/// The top-level module that a file of `src/` belongs to.
fn module_of(path: &Path) -> String {
    let relative = path.strip_prefix(root().join("src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn assert_same(what: &str, documented: &Table, found: &Table) {
    let names: BTreeSet<_> = documented.keys().chain(found.keys()).collect();
    let empty = BTreeSet::new();
    let of = |table: &'_ Table, name: &String| table.get(name).unwrap_or(&empty).clone();
    let mut problems = Vec::new();
    for name in names {
        let (rule, code) = (of(documented, name), of(found, name));
        for extra in code.difference(&rule) {
            problems.push(format!("{what} `{name}`: `{extra}` is in the code but not in docs/ARCHITECTURE.md"));
        }
        for missing in rule.difference(&code) {
            problems.push(format!("{what} `{name}`: `{missing}` is in docs/ARCHITECTURE.md but not in the code"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// What each module of the root package imports, modules and crates of this workspace alike.
fn imports() -> Table {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    let mut found = Table::new();
    for path in files {
        let (module, code) = (module_of(&path), code(&path));
        // The binary sees the library from outside.
        let prefix = if module == "main" { "ghostserve::" } else { "crate::" };
        let modules = names_after(&code, prefix).into_iter();
        // Names of metrics begin with the same word.
        let crates = names_after(&code, "ghostserve_").into_iter();
        let crates = crates.filter(|name| !name.is_empty() && root().join("crates").join(name).is_dir());
        let crates = crates.map(|name| format!("ghostserve-{name}"));
        let all = found.entry(module.clone()).or_default();
        all.extend(modules.chain(crates).filter(|name| *name != module && !name.is_empty()));
    }
    // The list of modules.
    found.remove("lib");
    found
}

#[test]
fn modules_import_what_the_architecture_allows() {
    assert_same("module", &documented("## Which module imports which"), &imports());
}

#[test]
fn no_modules_import_each_other() {
    let imports = imports();
    fn visit<'a>(module: &'a str, imports: &'a Table, path: &mut Vec<&'a str>, done: &mut BTreeSet<&'a str>) {
        assert!(!path.contains(&module), "a circle of modules: {} → {module}", path.join(" → "));
        if done.contains(module) {
            return;
        }
        path.push(module);
        for next in imports.get(module).into_iter().flatten() {
            visit(next, imports, path, done);
        }
        path.pop();
        done.insert(module);
    }
    let mut done = BTreeSet::new();
    imports.keys().for_each(|module| visit(module, &imports, &mut Vec::new(), &mut done));
}

#[test]
fn libraries_are_used_where_the_architecture_says() {
    let documented = documented("## Which module uses which library");
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    let mut found = Table::new();
    for path in files {
        let (module, code) = (module_of(&path), code(&path));
        for library in documented.keys() {
            let name = format!("{}::", library.replace('-', "_"));
            let used = code
                .match_indices(&name)
                .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
            if used {
                found.entry(library.clone()).or_default().insert(module.clone());
            }
        }
    }
    assert_same("library", &documented, &found);
}

#[test]
fn lines_have_at_most_120_columns() {
    let mut files = Vec::new();
    ["src", "crates", "tests", "benches"].iter().for_each(|folder| rust_files(&root().join(folder), &mut files));
    let mut long = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().enumerate().filter(|(_, line)| line.chars().count() > 120);
        long.extend(lines.map(|(index, _)| format!("{}:{}", path.display(), index + 1)));
    }
    assert!(long.is_empty(), "longer than 120 columns:\n{}", long.join("\n"));
}

#[test]
fn names_are_found_in_use_declarations() {
    let names = |code: &str| names_after(code, "crate::").into_iter().collect::<Vec<_>>();
    assert_eq!(names("use crate::a::B;\nlet x = crate::c::d(); $crate::e!()"), ["a", "c"]);
    assert_eq!(names("use crate::{a::{B, C}, d, e::F};"), ["a", "d", "e"]);
}
