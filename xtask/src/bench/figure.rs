//! One measured number, and how it is printed.

use serde_json::{Value, json};

/// A measured number with its unit, beside what it was measured.
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    target: Option<Target>,
    measured_beside: String,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
    Within(f64, f64),
}

impl Target {
    pub(crate) fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
            Self::Within(least, most) => (least..=most).contains(&value),
        }
    }

    pub(crate) fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!(">= {bound}"),
            Self::AtMost(bound) => format!("<= {bound}"),
            Self::Within(least, most) => format!("{least} to {most}"),
        }
    }
}

impl Figure {
    /// A number nothing is asked of: baselines, mostly.
    pub(crate) fn plain(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            target: None,
            measured_beside: String::new(),
        }
    }

    /// With something asked of it.
    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// With what it is compared with, or how it was taken.
    pub(crate) fn beside(mut self, what: impl Into<String>) -> Self {
        self.measured_beside = what.into();
        self
    }

    fn met(&self) -> Option<bool> {
        self.target.map(|target| target.is_met_by(self.value))
    }
}

/// Results that are too many for figures of their own.
pub(crate) struct Table {
    /// What the table is called in `--json`.
    pub(crate) name: &'static str,
    /// What it shows, in a sentence or two.
    pub(crate) about: String,
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
    /// The same for `--json`, every number by its name.
    pub(crate) data: Value,
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header(&self.header);
        table.add_rows(&self.rows);
        write!(f, "{}\n\n{table}", self.about)
    }
}

/// The object of `bench --json`.
pub(crate) fn to_json(figures: &[Figure], tables: &[Table]) -> Value {
    let figures: Vec<Value> = figures
        .iter()
        .map(|figure| {
            json!({
                "name": figure.name,
                "value": figure.value,
                "unit": figure.unit,
                "target": figure.target.map(Target::text),
                "met": figure.met(),
                "measured_beside": figure.measured_beside,
            })
        })
        .collect();
    let tables: Vec<Value> = tables
        .iter()
        .map(|table| json!({ "name": table.name, "rows": table.data }))
        .collect();
    json!({ "schema": "dunlin.bench.v1", "figures": figures, "tables": tables })
}

/// A table in Markdown, as README shows it.
pub(crate) fn to_table(figures: &[Figure]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["figure", "value", "unit", "target", "met", "measured beside"]);
    for figure in figures {
        let met = figure.met().map_or("", |met| if met { "yes" } else { "NO" });
        let target = figure.target.map(Target::text).unwrap_or_default();
        let value = significant(figure.value);
        table.add_row([
            figure.name.as_str(),
            &value,
            figure.unit,
            &target,
            met,
            &figure.measured_beside,
        ]);
    }
    for column in [1, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    table.to_string()
}

/// Three significant digits, or all digits before the point.
pub(crate) fn significant(value: f64) -> String {
    let magnitude = if value == 0.0 { 0.0 } else { value.abs().log10().floor() };
    let decimals = (2.0 - magnitude).clamp(0.0, 9.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [1234.5, 12.345, 0.012_345, 0.0, -3.0].map(significant);
        assert_eq!(shown, ["1234", "12.3", "0.0123", "0.00", "-3.00"]);
    }

    #[test]
    fn a_target_is_met_or_not() {
        let figure = |value| {
            Figure::plain("f", value, "x")
                .target(Target::AtLeast(0.7))
                .beside("bare")
        };
        let table = Table {
            name: "t",
            about: "what it shows".into(),
            header: vec!["a".into(), "b".into()],
            rows: vec![vec!["1".into(), "2".into()]],
            data: json!([{ "a": 1, "b": 2 }]),
        };
        assert!(table.to_string().starts_with("what it shows\n\n| a | b |"));
        let json = to_json(&[figure(0.7), figure(0.69), Figure::plain("g", 1.0, "s")], &[table]);
        assert_eq!(json["tables"][0]["rows"][0]["b"], 2);
        assert_eq!(json["schema"], "dunlin.bench.v1");
        assert_eq!(json["figures"][0]["met"], true);
        assert_eq!(json["figures"][1]["met"], false);
        assert_eq!(json["figures"][2]["met"], Value::Null);
        assert_eq!(json["figures"][0]["target"], ">= 0.7");
        assert!(to_table(&[figure(0.5)]).contains("NO"));
    }
}
