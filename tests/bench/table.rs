//! The measured values beside their budgets.

use std::fmt::Write;

/// The unit of a value.
#[derive(Debug, Clone, Copy)]
pub enum Unit {
    Seconds,
    Milliseconds,
    /// Megabytes of 1,000,000 bytes.
    Megabytes,
    Calls,
}

/// One measured value, and its budget if it has one.
#[derive(Debug, Clone)]
pub struct Row {
    what: String,
    unit: Unit,
    measured: f64,
    floor: Option<f64>,
    budget: Option<f64>,
}

impl Row {
    pub fn new(what: String, unit: Unit, measured: f64, budget: f64) -> Self {
        Self { budget: Some(budget), ..Self::without_budget(what, unit, measured) }
    }

    pub fn without_budget(what: String, unit: Unit, measured: f64) -> Self {
        Self { what, unit, measured, floor: None, budget: None }
    }

    /// Adds the floor, the least possible value.
    pub fn with_floor(self, floor: f64) -> Self {
        Self { floor: Some(floor), ..self }
    }

    pub fn is_over(&self) -> bool {
        self.budget.is_some_and(|budget| self.measured > budget)
    }

    fn shown(&self, value: f64) -> String {
        self.unit.shown(value)
    }
}

impl Unit {
    pub fn shown(self, value: f64) -> String {
        match self {
            Unit::Seconds => format!("{value:.3} s"),
            Unit::Milliseconds => format!("{value:.1} ms"),
            Unit::Megabytes => format!("{value:.2} MB"),
            Unit::Calls => format!("{value}"),
        }
    }
}

/// All rows, as a table in Markdown.
pub fn draw(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.what.len()).max().unwrap_or_default();
    let mut table = String::new();
    let mut line = |what: &str, cells: [&str; 4]| {
        let [measured, floor, budget, verdict] = cells;
        let line = writeln!(table, "| {what:width$} | {measured:>9} | {floor:>9} | {budget:>9} | {verdict:4} |");
        line.expect("a string takes all");
    };
    line("what", ["measured", "floor", "limit", ""]);
    line(&"-".repeat(width), ["--------:", "--------:", "--------:", "----"]);
    for row in rows {
        let [floor, budget] =
            [row.floor, row.budget].map(|value| value.map(|value| row.shown(value)).unwrap_or_default());
        let verdict = match row.budget {
            Some(_) if row.is_over() => "over",
            Some(_) => "ok",
            None => "",
        };
        line(&row.what, [&row.shown(row.measured), &floor, &budget, verdict]);
    }
    table
}
