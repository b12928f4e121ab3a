//! The results of `cargo xtask demo shutdown` and `cargo xtask demo rolling`.

use std::time::Duration;

use local_mesh::Quiet;
use local_mesh::demo::{self, CASES, Demo, Length, Outcome, Row};
use local_mesh::rolling::{self, Expected};

use crate::whole;

#[tokio::test]
async fn stop_with_delay_and_draining_fails_no_request() {
    let docker = whole().await;
    let mut demo = Demo::new(docker.clone());
    println!("{}", demo::head());
    for case in CASES {
        // With delay and draining one stop is enough: no request may fail. The other cases need failures, and so more stops.
        let stops = if case.settings.is_empty() { 1 } else { 3 };
        let length = Length { stops, least: Duration::ZERO };
        let Outcome { report, retries_refused } = demo.run(case, length, &Quiet).await.unwrap();
        println!("{}", Row { name: case.name, report: &report, retries_refused });
        assert_eq!(report.sent, report.succeeded + report.failed);
        assert!(report.sent > 0, "{report:?}");
        let drains = case.settings.is_empty();
        match (drains, case.router) {
            (true, _) => assert_eq!(report.failed, 0, "{}: {:?}", case.name, report.failures),
            (false, false) => assert!(
                report.failed > 0,
                "without delay and draining some requests must fail, or the test shows nothing"
            ),
            (false, true) => {
                // How many requests fail differs from run to run, so the rows are not compared. Envoy does not retry a request whose
                // connection broke after it was sent, and it runs at most three retries at a time. It retries all other failures.
                let broke = |(reason, _): &(&String, _)| reason.ends_with("reset reason: connection termination");
                let broken = report.failures.iter().filter(broke).map(|(_, count)| count).sum::<usize>();
                let refused = retries_refused as usize;
                assert!(
                    report.failed - broken <= refused && refused <= report.failed,
                    "{refused}: {:?}",
                    report.failures
                );
            }
        }
    }
    demo.end().await.unwrap();
}

#[tokio::test]
async fn replacing_a_single_instance_fails_no_request() {
    let docker = whole().await;
    println!("{}", demo::head());
    for case in rolling::CASES {
        let replacements = if case.expected == Expected::Failures { 1 } else { 3 };
        let report = rolling::run(&docker, case, replacements, &Quiet).await.unwrap();
        println!("{}", Row { name: case.name, report: &report, retries_refused: 0 });
        assert_eq!(report.sent, report.succeeded + report.failed);
        assert!(report.sent > 0, "{report:?}");
        match case.expected {
            Expected::Lossless => assert_eq!(report.failed, 0, "{}: {:?}", case.name, report.failures),
            Expected::Failures => {
                assert!(report.failed > 0, "{}: some requests must fail, or the test shows nothing", case.name)
            }
            Expected::Measured => {}
        }
    }
    rolling::end(&docker).await.unwrap();
}
