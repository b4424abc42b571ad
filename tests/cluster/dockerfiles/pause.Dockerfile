# Holds the namespaces of a pod.
FROM scratch
COPY busybox /bin/busybox
COPY pause.sh /pause.sh
USER 65535:65535
ENTRYPOINT ["/bin/busybox", "sh", "/pause.sh"]
