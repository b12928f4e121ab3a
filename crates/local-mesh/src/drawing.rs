//! Draws a timeline as SVG: a bar for each container, a thin line for each observation from outside, and vertical lines at T0 to T4.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;

use crate::timeline::{Lane, Tick, Timeline};
use crate::workspace;

const WIDTH: f64 = 1080.0;
/// The width of the names, left of the time.
const LEFT: f64 = 210.0;
/// The width of the text right of the bars.
const RIGHT: f64 = 190.0;
const TOP: f64 = 96.0;
const ROW: f64 = 30.0;
const BOTTOM: f64 = 56.0;
/// The width of a label at the top, such as `T0`.
const LABEL: f64 = 26.0;

const STYLE: &str = "text{font:13px system-ui,'DejaVu Sans',sans-serif;fill:#1f2933}.title{font-size:17px;font-weight:600}\
    .soft{fill:#697586;paint-order:stroke;stroke:#fff;stroke-width:4px}.mark{font-weight:600;fill:#fff;font-size:12px}.grid{stroke:#e3e8ef}.t{stroke:#364152;stroke-dasharray:4 3}";
const CONTAINER: &str = "#4a7fb5";
const SEEN: &str = "#2a9d78";
const TERM: &str = "#e07a1f";
const KILL: &str = "#c62828";

/// Why a picture could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct DrawError {
    path: PathBuf,
    source: io::Error,
}

/// Draws a timeline in `target/timeline` and returns the file's path.
pub fn draw(timeline: &Timeline) -> Result<PathBuf, DrawError> {
    let dir = workspace().join("target/timeline");
    let path = dir.join(format!("{}.svg", timeline.name));
    let written = std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&path, svg(timeline)));
    written.map(|()| path.clone()).map_err(|source| DrawError { path, source })
}

/// Maps nanoseconds to the horizontal position in the picture.
struct Axis {
    from: f64,
    to: f64,
}

impl Axis {
    /// The axis for all moments. It has some room before T0 for bars without a begin, and after the end for bars without an end.
    fn of(timeline: &Timeline) -> Self {
        let last = timeline.moments.iter().map(|moment| moment.at).max().unwrap_or_default().max(1_000_000) as f64;
        let before = timeline.lanes.iter().any(|lane| lane.from.is_none());
        let after = timeline.lanes.iter().any(|lane| lane.to.is_none());
        Self { from: if before { -0.06 * last } else { 0.0 }, to: last * if after { 1.06 } else { 1.0 } }
    }

    fn x(&self, at: i64) -> f64 {
        LEFT + (at as f64 - self.from) / (self.to - self.from) * (WIDTH - LEFT - RIGHT)
    }

    /// About ten round times, in nanoseconds.
    fn grid(&self) -> Vec<i64> {
        const STEPS: [i64; 9] = [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 60_000];
        let fits = |step: &&i64| self.to / (**step as f64 * 1e6) <= 10.0;
        let step = STEPS.iter().find(fits).unwrap_or(&300_000) * 1_000_000;
        (0..).map(|number| number * step).take_while(|at| *at as f64 <= self.to).collect()
    }
}

/// The picture of a timeline.
fn svg(timeline: &Timeline) -> String {
    let axis = Axis::of(timeline);
    let floor = TOP + ROW * timeline.lanes.len() as f64;
    let height = floor + BOTTOM;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/><text class="title" x="20" y="32">{}</text>"##,
        escaped(&timeline.title)
    );
    for at in axis.grid() {
        let x = axis.x(at);
        let seconds = at as f64 / 1e9;
        let _ = write!(
            svg,
            r#"<path class="grid" d="M{x:.1} {TOP}V{floor}"/><text class="soft" x="{x:.1}" y="{:.1}" text-anchor="middle">{seconds} s</text>"#,
            floor + 18.0
        );
    }
    // The text is drawn last, on top of the lines.
    let mut words = String::new();
    for (number, lane) in timeline.lanes.iter().enumerate() {
        draw_lane(&mut svg, &mut words, &axis, lane, TOP + ROW * number as f64 + ROW / 2.0);
    }
    draw_marks(&mut svg, &axis, timeline, floor);
    svg.push_str(&words);
    draw_legend(&mut svg, timeline, height - 14.0);
    svg.push_str("</svg>\n");
    svg
}

fn draw_lane(svg: &mut String, words: &mut String, axis: &Axis, lane: &Lane, y: f64) {
    let Lane { name, container, from, to, end: how, ticks } = lane;
    let x = from.map_or(LEFT, |at| axis.x(at));
    let end = to.map_or(WIDTH - RIGHT, |at| axis.x(at)).max(x + 3.0);
    let (thickness, colour) = if *container { (16.0, CONTAINER) } else { (5.0, SEEN) };
    let _ = write!(
        svg,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text><rect x="{x:.1}" y="{:.1}" width="{:.1}" height="{thickness}" rx="2.5" fill="{colour}"/>"#,
        LEFT - 12.0,
        y + 4.5,
        escaped(name),
        y - thickness / 2.0,
        end - x,
    );
    if !container && to.is_some() {
        let _ = write!(svg, r##"<path d="M{end:.1} {:.1}l6 6l-6 6l-6 -6z" fill="{SEEN}" stroke="#fff"/>"##, y - 6.0);
    }
    for (at, tick) in ticks {
        let at = axis.x(*at);
        let shape = match tick {
            Tick::Term => {
                format!(r#"<rect x="{:.1}" y="{:.1}" width="4" height="22" fill="{TERM}"/>"#, at - 2.0, y - 11.0)
            }
            Tick::Kill => {
                format!(r#"<rect x="{:.1}" y="{:.1}" width="4" height="22" fill="{KILL}"/>"#, at - 2.0, y - 11.0)
            }
            Tick::Healthy => {
                format!(r##"<circle cx="{at:.1}" cy="{y:.1}" r="5" fill="#fff" stroke="{SEEN}" stroke-width="3"/>"##)
            }
        };
        svg.push_str(&shape);
    }
    let label = match to {
        Some(at) => format!("{} ms, {how}", at / 1_000_000),
        None => "continues".to_owned(),
    };
    let _ = write!(words, r#"<text class="soft" x="{:.1}" y="{:.1}">{}</text>"#, end + 12.0, y + 4.5, escaped(&label));
}

/// Draws T0 to T4. Labels of close times are drawn side by side.
fn draw_marks(svg: &mut String, axis: &Axis, timeline: &Timeline, floor: f64) {
    let mut free = 0.0_f64;
    for moment in &timeline.moments {
        let Some(mark) = moment.mark else { continue };
        let x = axis.x(moment.at);
        let label = x.max(free);
        free = label + LABEL + 4.0;
        let _ = write!(
            svg,
            r##"<path class="t" d="M{x:.1} {floor}V{TOP}L{label:.1} {:.1}" fill="none"/><rect x="{:.1}" y="{:.1}" width="{LABEL}" height="18" rx="4" fill="#364152"/><text class="mark" x="{label:.1}" y="{:.1}" text-anchor="middle">{mark}</text>"##,
            TOP - 14.0,
            label - LABEL / 2.0,
            TOP - 32.0,
            TOP - 18.5,
        );
    }
}

fn draw_legend(svg: &mut String, timeline: &Timeline, y: f64) {
    let ticks = || timeline.lanes.iter().flat_map(|lane| &lane.ticks).map(|(_, tick)| *tick);
    let legend = [
        (true, CONTAINER, "container"),
        (timeline.lanes.iter().any(|lane| !lane.container), SEEN, "observed from outside, until"),
        (ticks().any(|tick| tick == Tick::Healthy), SEEN, "healthy"),
        (ticks().any(|tick| tick == Tick::Term), TERM, "TERM"),
        (ticks().any(|tick| tick == Tick::Kill), KILL, "KILL"),
    ];
    let mut x = LEFT;
    for (_, colour, what) in legend.into_iter().filter(|(shown, ..)| *shown) {
        let _ = write!(
            svg,
            r#"<rect x="{x:.1}" y="{:.1}" width="11" height="11" rx="2" fill="{colour}"/><text class="soft" x="{:.1}" y="{y:.1}">{what}</text>"#,
            y - 10.0,
            x + 17.0
        );
        x += 48.0 + 7.2 * what.len() as f64;
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::Moment;

    fn lane(name: &str, to: Option<i64>) -> Lane {
        let ticks = vec![(0, Tick::Term)];
        Lane { name: name.to_owned(), container: true, from: None, to, end: "exited 0".to_owned(), ticks }
    }

    #[test]
    fn bars_end_at_their_time_and_close_marks_do_not_overlap() {
        let moment = |at: i64, mark| Moment { at, mark: Some(mark), who: String::new(), what: String::new() };
        let timeline = Timeline {
            title: "a < b".to_owned(),
            name: "x".to_owned(),
            moments: vec![moment(0, "T0"), moment(1_000_000, "T1"), moment(10_000_000_000, "T3")],
            lanes: vec![lane("early", Some(5_000_000_000)), lane("late", Some(10_000_000_000))],
        };
        let axis = Axis::of(&timeline);
        assert_eq!(axis.x(10_000_000_000), WIDTH - RIGHT);
        assert!(axis.x(0) > LEFT, "bars that began before T0 have room");
        let middle = (axis.x(0) + axis.x(10_000_000_000)) / 2.0;
        assert!((axis.x(5_000_000_000) - middle).abs() < 0.1);
        assert_eq!(axis.grid().len(), 11);
        let svg = svg(&timeline);
        assert!(svg.contains("a &lt; b") && svg.contains("5000 ms, exited 0"), "{svg}");
        let at = |mark: &str| {
            let before = svg.split(&format!(">{mark}<")).next().unwrap();
            let x = before.rsplit("class=\"mark\" x=\"").next().unwrap();
            x.split('"').next().unwrap().parse::<f64>().unwrap()
        };
        assert!(at("T1") - at("T0") >= LABEL, "{svg}");
    }
}
