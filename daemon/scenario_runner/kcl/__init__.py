"""KCL's MultiLangDaemon as a supervised JVM: configuration, worker ids, lease table, status files, supervisor."""
