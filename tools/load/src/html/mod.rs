//! Reports as pages that stand alone: one file, nothing loaded from anywhere, complete without its few lines of script, which
//! only tell what the pointer is at; fit for a screen, light or dark, and for paper.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use crate::{
    compare::{differences, flat_settings},
    json::{ReportFileError, RunReport},
};

mod charts;
mod comparison;
mod plot;
mod run;
mod sweep;

pub use comparison::of_comparison;
pub use run::of_run;
pub use sweep::of_sweep;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Text that cannot be taken for markup.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            other => out.push(other),
        }
    }
    out
}

/// Writes a page.
///
/// # Errors
/// If the file cannot be written.
pub fn save(page: &str, path: &Path) -> Result<(), ReportFileError> {
    let file = path.display().to_string();
    fs::write(path, page).map_err(|error| ReportFileError::Io { what: "write", file, error })
}

/// A page: what it is, what came of it, and the rest.
fn page(kind: &str, headline: &str, body: &str) -> String {
    let (kind, headline, version) = (escaped(kind), escaped(headline), env!("CARGO_PKG_VERSION"));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{headline}</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n\
         <p class=\"eyebrow\">{kind}</p>\n<h1>{headline}</h1>\n{body}\
         <footer>wpaxos-load {version}</footer>\n</main>\n<script>\n{SCRIPT}</script>\n</body></html>\n"
    )
}

/// A drawing with its title, and what must be known to read it.
fn figure(title: &str, caption: &str, svg: &str) -> String {
    format!(
        "<figure><h2>{}</h2>\n<div class=\"wide\">{svg}</div><figcaption>{}</figcaption></figure>\n",
        escaped(title),
        escaped(caption)
    )
}

/// Whether what follows may be quoted.
fn banner(is_good: bool, verdict: &str, text: &str, items: &[String]) -> String {
    let class = if is_good { "banner" } else { "banner bad" };
    let list: String = items.iter().map(|item| format!("<li>{}</li>", escaped(item))).collect();
    let list = if list.is_empty() { list } else { format!("<ul>{list}</ul>") };
    format!("<div class=\"{class}\"><strong>{}</strong> {}{list}</div>\n", escaped(verdict), escaped(text))
}

/// Figures to be seen first, each with its name.
fn tiles(all: &[(&str, String)]) -> String {
    let tile = |(name, value): &(&str, String)| {
        format!("<div class=\"tile\"><dt>{}</dt><dd>{}</dd></div>", escaped(name), escaped(value))
    };
    format!("<dl class=\"tiles\">{}</dl>\n", all.iter().map(tile).collect::<String>())
}

fn note(text: &str) -> String {
    format!("<p class=\"note\">{}</p>\n", escaped(text))
}

/// A table of text; the first row is its head, the first column names the others. Rows that `is_marked` are set off.
fn table(class: &str, rows: &[Vec<String>], is_marked: impl Fn(&[String]) -> bool) -> String {
    let rows = rows.iter().map(|row| (is_marked(row), row.iter().map(|text| escaped(text)).collect()));
    table_of_markup(class, &rows.collect::<Vec<_>>())
}

/// As [`table`], of cells that are markup already.
fn table_of_markup(class: &str, rows: &[(bool, Vec<String>)]) -> String {
    let mut out = format!("<div class=\"wide\"><table class=\"{class}\">\n");
    for (number, (is_marked, row)) in rows.iter().enumerate() {
        let cell = |(column, markup): (usize, &String)| match (number, column) {
            (0, _) => format!("<th scope=\"col\">{markup}</th>"),
            (_, 0) => format!("<th scope=\"row\">{markup}</th>"),
            _ => format!("<td>{markup}</td>"),
        };
        let cells: String = row.iter().enumerate().map(cell).collect();
        let _ = match number {
            0 => writeln!(out, "<thead><tr>{cells}</tr></thead><tbody>"),
            _ if *is_marked => writeln!(out, "<tr class=\"knee\">{cells}</tr>"),
            _ => writeln!(out, "<tr>{cells}</tr>"),
        };
    }
    out + "</tbody></table></div>\n"
}

/// What figures must be read with, and where a report says it.
const ENVIRONMENT: [(&str, &[&str]); 17] = [
    ("target", &["target", "addresses", "cluster_file", "master"]),
    ("nodes", &["facts.nodes", "cluster.nodes"]),
    ("zones", &["facts.zones", "cluster.zones"]),
    ("shards of a node", &["facts.shards", "cluster.shards"]),
    ("quorums", &["facts.quorum"]),
    ("durability", &["facts.durability", "local_durability"]),
    ("tuning", &["facts.tuning"]),
    ("requests in flight", &["concurrency"]),
    ("requests/s offered", &["rate"]),
    ("workload", &["workload"]),
    ("share of writes", &["write_ratio"]),
    ("keys", &["keys"]),
    ("distribution of keys", &["distribution"]),
    ("bytes of a value", &["value_bytes"]),
    ("emulated distances", &["facts.wan"]),
    ("executors", &["facts.pinning"]),
    ("load workers", &["pinning"]),
];
/// The same, of the machine.
const MACHINE: [(&str, &[&str]); 5] = [
    ("processor of the load", &["machine.cpu"]),
    ("cores of the load", &["cores"]),
    ("kernel of the load", &["machine.kernel"]),
    ("version of the cluster", &["facts.version"]),
    ("version of wpaxos-load", &["version"]),
];

/// What the figures must be read with: of each configuration, or once where it is the same for all.
fn environment(of: &[(String, &RunReport)]) -> String {
    let flat: Vec<BTreeMap<String, String>> = of.iter().map(|(_, report)| flat_settings(report)).collect();
    let values_of = |keys: &[&str]| -> Vec<String> {
        let value = |flat: &BTreeMap<String, String>| {
            keys.iter().find_map(|key| flat.get(*key)).filter(|value| !value.is_empty()).cloned()
        };
        flat.iter().map(|flat| value(flat).unwrap_or_else(|| "–".to_owned())).collect()
    };
    let named = ENVIRONMENT.iter().chain(&MACHINE).map(|(name, keys)| ((*name).to_owned(), values_of(keys)));
    let told: Vec<(String, Vec<String>)> =
        named.filter(|(_, values)| values.iter().any(|value| value != "–")).collect();
    let differs = told.iter().any(|(_, values)| values.windows(2).any(|pair| pair[0] != pair[1]));
    let columns = if differs { of.len() } else { 1 };
    let names = of.iter().map(|(name, _)| name.clone()).take(columns);
    let names: Vec<String> = if differs { names.collect() } else { vec![String::new()] };
    let head = [String::new()].into_iter().chain(names).collect();
    let rows =
        told.into_iter().map(|(name, values)| [name].into_iter().chain(values.into_iter().take(columns)).collect());
    format!("<h2>Environment</h2>\n{}", table("words", &[head].into_iter().chain(rows).collect::<Vec<_>>(), |_| false))
}

/// Settings that are not the same in all.
fn differing(of: &[(String, &RunReport)]) -> String {
    let reports: Vec<&RunReport> = of.iter().map(|(_, report)| *report).collect();
    let differing = differences(&reports);
    if differing.is_empty() {
        return "<h2>Settings that differ</h2>\n<p>None: all settings are the same.</p>\n".to_owned();
    }
    let head = ["setting".to_owned()].into_iter().chain(of.iter().map(|(name, _)| name.clone())).collect();
    let rows = differing.into_iter().map(|(setting, values)| [setting].into_iter().chain(values).collect());
    let rows: Vec<_> = [head].into_iter().chain(rows).collect();
    format!("<h2>Settings that differ</h2>\n{}", table("words", &rows, |_| false))
}

/// All settings, folded away.
fn settings(summary: &str, report: &RunReport) -> String {
    let rows = [vec!["setting".to_owned(), "value".to_owned()]].into_iter();
    let all = flat_settings(report).into_iter().map(|(name, value)| vec![name, value]);
    let rows: Vec<_> = rows.chain(all).collect();
    format!("<details><summary>{}</summary>{}</details>\n", escaped(summary), table("words", &rows, |_| false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::sample;

    /// Nothing that a browser would fetch, and nothing but the page's own script.
    pub(super) fn assert_alone(page: &str) {
        let (before, after) = page.split_once(SCRIPT).expect("the page has its script");
        let page = format!("{before}{after}").replace("<script>\n</script>", "");
        for outside in ["<script", "http://", "https://", "src=", "href=", "@import", "url(", "<link", "<img", "onload"]
        {
            assert!(!page.contains(outside), "the page is not alone: {outside}");
        }
        for tag in
            ["svg", "figure", "table", "details", "div", "ul", "p", "text", "h2", "thead", "tbody", "tr", "td", "th"]
        {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "<{tag}> is not closed as often as opened");
        }
    }

    #[test]
    fn no_text_is_taken_for_markup() {
        assert_eq!(escaped("<b a='1' c=\"2\">&"), "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;");
        let evil = "</script><script>alert(1)</script>".to_owned();
        let rows = [vec![evil.clone(), evil.clone()], vec![evil.clone(), evil.clone()]];
        let body = table("words", &rows, |_| false)
            + &note(&evil)
            + &banner(false, &evil, &evil, std::slice::from_ref(&evil))
            + &tiles(&[(&evil, evil.clone())])
            + &figure(&evil, &evil, "<svg></svg>");
        assert_alone(&page(&evil, &evil, &body));
    }

    #[test]
    fn the_environment_is_told_once_where_it_is_the_same_and_of_each_where_it_differs() {
        let (a, mut b) = (sample(), sample());
        let told = environment(&[("a".to_owned(), &a), ("b".to_owned(), &a)]);
        assert!(told.contains("keys") && told.contains("1000") && !told.contains(">a<"), "{told}");
        b.config.insert("machine".to_owned(), serde_json::json!({"kernel": "6.1 <x>"}));
        let told = environment(&[("a".to_owned(), &a), ("b".to_owned(), &b)]);
        assert!(
            told.contains(">a<") && told.contains(">b<") && told.contains("<td>–</td><td>6.1 &lt;x&gt;</td>"),
            "{told}"
        );
        assert!(!told.contains("quorums"), "what nobody says has no row");
    }
}
